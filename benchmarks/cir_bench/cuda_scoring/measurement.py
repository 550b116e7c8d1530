"""Verify, then time in turn: one size, the sweep over sizes, and what follows from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from cir_bench.cuda_scoring.entries import EVERYTHING, Entry, filled, ours
from cir_bench.cuda_scoring.libraries import in_libraries
from cir_bench.cuda_scoring.place import Place, gpu
from cir_bench.cuda_scoring.pytorch import in_pytorch, why_no_pytorch
from cir_bench.cuda_scoring.workload import Case, Workload, stored_rows
from cir_bench.scoring.workload import artemis_terms
from cir_bench.timing import percentile
from cir_eval.predictions import DEVICES, predict_scan
from cir_infer.errors import CirError
from cir_infer.gpu.device import Memory, Stream
from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.arguments import ReadArguments
from cir_infer.scoring.cuda.tuning import Tuning

__all__ = [
    "SIZES",
    "call_latency",
    "crossover",
    "gemm_rate",
    "kinds_of_memory",
    "measure",
    "predictions",
    "sweep",
    "told",
]

SIZES = tuple(
    (rows, queries) for rows in (15_000, 100_000, 1_000_000, 10_000_000) for queries in (1, 8, 64, 1024)
)
"""Rows and queries of the whole sweep."""

_ALL_TYPES_UP_TO = 1_000_000
_PREDICTED = ("T4", "Orin")


def measure(
    case: Case,
    dtypes: Sequence[str] = ("float16", "float32", "int8"),
    *,
    place: Place | None = None,
    compiler: str = "inductor",
    alternatives: Container[str] = EVERYTHING,
    progress: Callable[[str], object] = lambda _: None,
) -> list[dict[str, Any]]:
    """Time every entry of a case.

    Entries of one row type take turns, so that clocks and neighbours weigh on all alike. The alternatives
    run beside float16 rows, the fastest type that they have.

    Args:
        case: the size.
        dtypes: types of rows for our kernels.
        place: where; None is the GPU.
        compiler: backend of `torch.compile`.
        alternatives: names of those to time besides ours.
        progress: called with what is being done.

    Returns:
        One object an entry: `name`, `dtype`, `verified`, `median_ms`, `p10_ms`, `p90_ms` (of all queries
        together), `of_roofline` (time over that of reading the same bytes), `extra_bytes`; `queries_timed`
        where a loop over queries was timed on fewer and scaled. Entries that cannot run, or whose answer is
        wrong, have `skipped` instead of times.

    Raises:
        DeviceError: no usable GPU.
    """
    place = place or gpu()
    results: list[dict[str, Any]] = []
    for dtype in dtypes:
        entries: list[Entry] = []
        progress(f"{case.rows:,} rows of {dtype}, {case.queries:,} queries: verifying")
        try:
            entries += _entries(place, Workload.of(case, dtype), compiler, alternatives)
            progress(f"{case.rows:,} rows of {dtype}, {case.queries:,} queries: timing")
            results += _interleaved(place, entries, case.samples)
        finally:
            for entry in entries:
                entry.close()
    return results


def _entries(place: Place, work: Workload, compiler: str, wanted: Container[str]) -> Iterator[Entry]:
    yield from ours(place, work)
    if work.dtype == "float16":
        yield from in_pytorch(place, work, compiler, wanted)
        yield from in_libraries(place, work, wanted)


def _interleaved(place: Place, entries: Sequence[Entry], samples: int) -> list[dict[str, Any]]:
    """Each sample runs every entry once."""
    live = [entry for entry in entries if entry.verified and not entry.skipped]
    times: dict[int, list[float]] = {id(entry): [] for entry in live}
    with place.device.active():
        own = place.device.new_stream()
        for i in range(-3, samples):
            for entry in live:
                stream = None if entry.default_stream else own

                def launch(stream: Any, entry: Entry = entry, i: int = i) -> object:
                    return entry.launch(i, stream)

                spent = place.time(launch, stream)
                if i >= 0:
                    times[id(entry)].append(spent * entry.times)
    rooflines = {
        e.dtype: percentile(times[id(e)], 50) / e.read_bytes for e in live if e.name.startswith("read/")
    }
    return [_result(entry, times.get(id(entry), []), rooflines.get(entry.dtype)) for entry in entries]


def _result(entry: Entry, times: list[float], ms_of_byte: float | None) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": entry.name,
        "dtype": entry.dtype,
        "verified": entry.verified,
        **entry.facts,
    }
    if entry.skipped or not entry.verified:
        return {**out, "skipped": entry.skipped or "the answer is wrong"}
    median = percentile(times, 50)
    return {
        **out,
        "median_ms": median,
        "p10_ms": percentile(times, 10),
        "p90_ms": percentile(times, 90),
        "of_roofline": median / (ms_of_byte * entry.read_bytes) if ms_of_byte and entry.read_bytes else None,
        "extra_bytes": entry.extra_bytes,
    }


def sweep(
    sizes: Sequence[tuple[int, int]] = SIZES,
    *,
    dim: int = 512,
    k: int = 50,
    samples: int = 30,
    seconds: float = float("inf"),
    progress: Callable[[str], object] = lambda _: None,
    place: Place | None = None,
    compiler: str = "inductor",
) -> dict[str, Any]:
    """Every size until the time is up, then what is measured once for a GPU.

    Returns:
        `cases`: `rows`, `dim`, `queries`, `k` and the `results` of `measure`; `left_out`: sizes that there
        was no time or memory for; `call`: see `call_latency`; `gemm_flops`: see `gemm_rate`, and each of our
        float16 entries then has `of_gemm_rate`; `crossover`: see there; `predictions`.

    Raises:
        DeviceError: no usable GPU.
    """
    place = place or gpu()
    end = time.monotonic() + seconds
    out: dict[str, Any] = {"cases": [], "left_out": []}
    out["gemm_flops"] = gemm_rate(place)
    for rows, queries in sizes:
        size = {"rows": rows, "dim": dim, "queries": queries, "k": k}
        if time.monotonic() > end:
            out["left_out"].append({**size, "why": "no time left"})
            continue
        progress(f"{rows:,} rows, {queries:,} queries")
        dtypes = ("float16", "float32", "int8") if rows <= _ALL_TYPES_UP_TO else ("float16",)
        case = Case(rows, dim, queries, min(k, rows), samples)
        try:
            results = measure(case, dtypes, place=place, compiler=compiler)
        except (CirError, MemoryError, RuntimeError) as error:  # the other sizes are still worth having
            out["left_out"].append({**size, "why": repr(error)})
            continue
        out["cases"].append(told(case, results, out["gemm_flops"], progress))
    out["call"] = call_latency(place, dim=dim, k=k)
    out["predictions"] = predictions(out["cases"])
    if time.monotonic() < end:
        tuning = crossover(place, dim, k)
        out["crossover"] = {"queries": tuning.queries, "rows": tuning.rows, "source": tuning.source}
    return out


def told(
    case: Case, results: list[dict[str, Any]], gemm_flops: float | None, progress: Callable[[str], object]
) -> dict[str, Any]:
    """A case with its results, as `sweep` has them."""
    for entry in results:
        if gemm_flops and entry["name"] == "cir/cuda" and "median_ms" in entry:
            useful = 2 * 4 * case.rows * case.dim * case.queries
            entry["of_gemm_rate"] = useful / (entry["median_ms"] * 1e-3) / gemm_flops
    for entry in results:
        said = entry.get("skipped") or f"{entry['median_ms']:.3f} ms"
        progress(f"  {entry['name']:28} {entry['dtype']:8} {said}")
    size = {"rows": case.rows, "dim": case.dim, "queries": case.queries, "k": case.k}
    return {**size, "results": results}


def predictions(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Times of one query on GPUs that were not at hand, labelled as predicted.

    Bytes of the rows over the published bandwidth, divided by the share of the read bandwidth that was
    reached here on the largest gallery: too good by as much as a GPU stays below its published bandwidth.
    """
    measured = [
        (case["rows"], case["dim"], entry["of_roofline"])
        for case in cases
        if case["queries"] == 1
        for entry in case["results"]
        if entry["name"] == "cir/cuda" and entry["dtype"] == "float16" and entry.get("of_roofline")
    ]
    if not measured:
        return []
    largest, dim, over_roofline = max(measured)
    return [
        {
            "kind": "predicted",
            "gpu": device.name,
            "rows": rows,
            "queries": 1,
            "dtype": "float16",
            "scan_ms": predict_scan(device, rows * dim * 2, 1 / over_roofline),
            "share_of_bandwidth": 1 / over_roofline,
            "share_measured_on_rows": largest,
        }
        for device in DEVICES
        if any(name in device.name for name in _PREDICTED)
        for rows in (100_000, 1_000_000)
    ]


def crossover(place: Place, dim: int = 512, k: int = 50, samples: int = 15) -> Tuning:
    """Measure where the tensor cores overtake the exact kernel on this GPU, for `tuning.MEASURED`."""
    rows = place.crossover_rows
    values = stored_rows(Case(rows, dim), "float16")
    never, always = Tuning(10**9, 0), Tuning(1, 0)

    def faster(count: int, queries: int) -> bool:
        terms = artemis_terms(queries, dim, 3)
        stored = values if count == rows else stored_rows(Case(count, dim), "float16")
        entries = [
            _tuned(place, CudaScorer(stored, tuning=t, device=place.device), terms, k)
            for t in (never, always)
        ]
        try:
            exact, batch = (r["median_ms"] for r in _interleaved(place, entries, samples))
        finally:
            for entry in entries:
                entry.close()
        return bool(batch < exact)

    queries = next((q for q in (1, 2, 3, 4, 6, 8, 16, 32) if faster(rows, q)), 64)
    least_rows = next(
        (n for n in (4096, 8192, 16_384, 32_768, 65_536) if n < rows and faster(n, 4 * queries)), rows
    )
    return Tuning(queries, least_rows, source=f"{place.device.name}, D = {dim}, k = {k}, float16")


def _tuned(place: Place, scorer: CudaScorer, terms: QueryTerms, k: int) -> Entry:
    search = filled(place, scorer, terms, k)

    def close() -> None:
        with place.device.active():
            search.close()
        scorer.close()

    return Entry("cir/cuda", "float16", lambda _, stream: search.launch(stream), verified=True, close=close)


def call_latency(place: Place, rows: int = 15_000, dim: int = 512, k: int = 50) -> dict[str, float]:
    """Milliseconds of one whole call from Python, the terms on the GPU: launch, wait, answer as arrays."""
    device, terms = place.device, artemis_terms(1, dim, 5)
    with CudaScorer(stored_rows(Case(rows, dim), "float16"), device=device) as scorer:
        search = filled(place, scorer, terms, k)
        spent = []
        with device.active():
            stream = device.new_stream()
            for _ in range(place.calls):
                begun = time.perf_counter()
                search.launch(stream)
                device.synchronize(stream)
                search.result()
                spent.append((time.perf_counter() - begun) * 1e3)
            search.close()
    return {"rows": rows, "median_ms": percentile(spent, 50), "p90_ms": percentile(spent, 90)}


_KIND_BYTES = 64 << 20


def kinds_of_memory(place: Place, nbytes: int = _KIND_BYTES, samples: int = 7) -> dict[str, float]:
    """Bytes a second of a kernel that reads the GPU's own memory, and page-locked memory of the host.

    What an integrated GPU takes for a gallery in place, and over what link any other one would read it.
    """
    device, rates = place.device, {}
    with device.active():
        stream = device.new_stream()
        blocks = 4 * device.multiprocessors
        mixed = device.allocate(blocks * 256 * 4)
        for kind, allocate in (("own", device.allocate), ("page-locked", device.allocate_host)):
            memory: Memory = allocate(nbytes)
            device.zero(memory.address, nbytes, stream)
            arguments = ReadArguments(memory.address, mixed.address, nbytes // 16)

            def launch(on: Stream, arguments: ReadArguments = arguments) -> None:
                device.launch("read_bytes", (blocks, 1), 0, arguments, on)

            rates[kind] = nbytes / (1e-3 * min(place.time(launch, stream) for _ in range(samples)))
            memory.free()
        mixed.free()
    return rates


def gemm_rate(place: Place) -> float | None:
    """Operations a second of PyTorch's float16 matrix product, the rate that batches are held against."""
    if why_no_pytorch(place):
        return None
    import torch

    size = place.gemm_side
    a, b = (torch.randn(size, size, device=place.torch).half() for _ in range(2))
    with place.device.active():
        spent = [place.time(lambda _: torch.matmul(a, b), None) for _ in range(13)][3:]
    return float(2 * size**3 / (percentile(spent, 50) * 1e-3))
