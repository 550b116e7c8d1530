"""The benchmark of `make gpu-check` in parts, the most valuable facts first, each kept once it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from cir_bench.cuda_scoring.entries import filled
from cir_bench.cuda_scoring.measurement import (
    call_latency,
    crossover,
    gemm_rate,
    kinds_of_memory,
    measure,
    predictions,
    told,
)
from cir_bench.cuda_scoring.place import Place, gpu
from cir_bench.cuda_scoring.workload import Case, stored_rows
from cir_bench.scoring.workload import artemis_terms
from cir_infer.errors import CirError
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning

__all__ = ["PARTS", "joined", "launch_each_once", "run_part"]


class Sized(NamedTuple):
    """A size to measure.

    Attributes:
        rows: of the gallery.
        queries: in a batch.
        dtypes: types of rows, each measured by itself.
        alternatives: what takes turns with ours, by name.
    """

    rows: int
    queries: int
    dtypes: tuple[str, ...] = ("float16",)
    alternatives: tuple[str, ...] = ()


_TWO_GEMMS = ("torch/two-gemms-topk",)

PARTS: Mapping[str, tuple[str | Sized, ...]] = {
    "single": (Sized(1_000_000, 1, ("float16", "int8", "float32"), ("torch/gemv-topk", "torch/copy")),),
    "small": ("call", Sized(100_000, 1), "memory", "crossover"),
    "batches": (
        "gemm_flops",
        Sized(100_000, 1024, alternatives=_TWO_GEMMS),
        Sized(1_000_000, 64, alternatives=_TWO_GEMMS),
        Sized(1_000_000, 1024, alternatives=_TWO_GEMMS),
        Sized(100_000, 64, alternatives=_TWO_GEMMS),
    ),
    "rivals": (
        Sized(1_000_000, 1, alternatives=("torch/literal",)),
        Sized(1_000_000, 1, alternatives=("faiss/flat, one dot", "cuvs/brute-force, one dot")),
        Sized(1_000_000, 1, alternatives=("torch/literal-compiled",)),
    ),
}
"""What each part measures, in order."""


def run_part(
    name: str,
    keep: Callable[[dict[str, Any]], object],
    *,
    progress: Callable[[str], object] = lambda _: None,
    place: Place | None = None,
    part: Iterable[str | Sized] | None = None,
    samples: int = 30,
) -> dict[str, Any]:
    """Measure one part.

    Args:
        name: of `PARTS`.
        keep: called with all that is known so far, after every measurement.
        progress: called with lines for people.
        place: where; None is the GPU.
        part: what to measure instead of what `PARTS` says.
        samples: how often each entry is timed.

    Returns:
        What `sweep` returns, as far as it was measured here.

    Raises:
        DeviceError: no usable GPU.
    """
    place = place or gpu()
    out: dict[str, Any] = {"cases": [], "left_out": []}
    for item in PARTS[name] if part is None else part:
        if item == "call":
            out["call"] = call_latency(place)
        elif item == "memory":
            out["memory"] = kinds_of_memory(place)
            progress(", ".join(f"{kind}: {rate / 1e9:.1f} GB/s" for kind, rate in out["memory"].items()))
        elif item == "crossover":
            tuning = crossover(place)
            out["crossover"] = {"queries": tuning.queries, "rows": tuning.rows, "source": tuning.source}
        elif item == "gemm_flops":
            out["gemm_flops"] = gemm_rate(place)
        elif isinstance(item, Sized):
            for dtype in item.dtypes:
                _measured(out, item, dtype, place, samples, progress)
                keep(out)
        keep(out)
    return out


def _measured(
    out: dict[str, Any],
    size: Sized,
    dtype: str,
    place: Place,
    samples: int,
    progress: Callable[[str], object],
) -> None:
    progress(f"{size.rows:,} rows of {dtype}, {size.queries:,} queries")
    case = Case(size.rows, queries=size.queries, k=min(50, size.rows), samples=samples)
    try:
        results = measure(case, (dtype,), place=place, alternatives=size.alternatives)
    except (CirError, MemoryError, RuntimeError) as error:  # the other sizes are still worth having
        out["left_out"].append({"rows": size.rows, "queries": size.queries, "why": repr(error)})
        return
    out["cases"].append(told(case, results, out.get("gemm_flops"), progress))


def joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several parts as one benchmark, with what follows from them."""
    out: dict[str, Any] = {"cases": [], "left_out": []}
    for part in parts:
        out["cases"] += part.get("cases", [])
        out["left_out"] += part.get("left_out", [])
        out.update({key: value for key, value in part.items() if key not in ("cases", "left_out")})
    out["predictions"] = predictions(out["cases"])
    return out


_THROUGH_TENSOR_CORES = Tuning(1, 0)


def launch_each_once(
    place: Place | None = None,
    rows: int = 1_000_000,
    batch: int = 64,
    tuning: Tuning = _THROUGH_TENSOR_CORES,
) -> None:
    """A query of each kind, for a profiler: one as stored and one from int8, and a batch.

    Args:
        place: where; None is the GPU.
        rows: of the gallery.
        batch: queries of the batch.
        tuning: of the last two.

    Raises:
        DeviceError: no usable GPU.
    """
    place = place or gpu()
    stored = stored_rows(Case(rows), "float16")
    asked: tuple[tuple[Literal["stored", "int8"], int, Tuning], ...] = (
        ("stored", 1, Tuning(10**9, 0)),
        ("int8", 1, tuning),
        ("stored", batch, tuning),
    )
    for scan, queries, tuned in asked:
        with CudaScorer(stored, scan=scan, tuning=tuned, device=place.device) as scorer:
            search = filled(place, scorer, artemis_terms(queries, 512, 11), 50)
            with place.device.active():
                stream = place.device.new_stream()
                search.launch(stream)
                place.device.synchronize(stream)
                search.close()
