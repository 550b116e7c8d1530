"""Exact scoring on a GPU against what else one could do there, in one run, verified first.

Every entry computes the same thing on the same rows: the k best of ARTEMIS's two weighted terms. Baselines
need PyTorch with CUDA and are left out, by name, where it is missing. Inputs rotate over copies that
together exceed the second-level cache; times are CUDA events, interleaved, medians reported.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_bench.scoring.workload import artemis_terms, quantise, unit_rows
from cir_bench.timing import percentile
from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.arguments import ReadArguments
from cir_infer.scoring.cuda.context import open_device
from cir_infer.scoring.cuda.search import CudaSearch
from cir_infer.scoring.cuda.tuning import Tuning
from cir_infer.scoring.reference import term_scores

__all__ = ["PREDICTED_BANDWIDTH", "Case", "call_latency", "crossover", "gemm_rate", "measure"]

PREDICTED_BANDWIDTH = {
    "T4": 320e9,
    "Jetson AGX Orin": 205e9,
    "Jetson Orin NX": 102e9,
    "Jetson Orin Nano": 68e9,
}
"""Nominal bytes a second; times for these GPUs are predictions from them and from what is measured here."""

_CACHE_BYTES = 256 << 20
"""More than any second-level cache: copies of the rows are rotated until they add up to it."""
_TOLERANCE = 2e-5
_MOST_EAGER_QUERIES = 8
_MOST_SCORE_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class Case:
    """One size to measure."""

    rows: int
    dim: int = 512
    queries: int = 1
    k: int = 50
    samples: int = 30


def measure(case: Case, dtypes: Sequence[str] = ("float16", "float32", "int8")) -> list[dict[str, Any]]:
    """Time every entry of a case.

    Returns:
        One object an entry: `name`, `dtype`, `verified`, `median_ms`, `p10_ms`, `p90_ms`, `of_roofline` (time
        over that of reading the same bytes), `extra_bytes`; entries that cannot run have `skipped` instead of
        times. An answer that does not verify is not timed.

    Raises:
        DeviceError: no usable GPU.
    """
    values = unit_rows(case.rows, case.dim, 7)
    terms = artemis_terms(case.queries, case.dim, 11)
    entries: list[_Entry] = []
    try:
        for dtype in dtypes:
            entries += _ours(case, values, terms, dtype)
        entries += _in_pytorch(case, values, terms)
        return _interleaved(entries, case.samples)
    finally:
        for entry in entries:
            entry.close()


def crossover(dim: int = 512, rows: int = 200_000, k: int = 50) -> Tuning:
    """Measure where the tensor cores overtake the exact kernel on this GPU, for `tuning.MEASURED`."""
    device = open_device()
    values = unit_rows(rows, dim, 7).astype(np.float16)
    never, always = Tuning(10**9, 0), Tuning(1, 0)

    def faster(count: int, queries: int) -> bool:
        terms = artemis_terms(queries, dim, 3)
        stored = Rows.of(values[:count])
        entries = [
            _Entry.of_scorer(str(t is always), "float16", CudaScorer(stored, tuning=t), terms, k)
            for t in (never, always)
        ]
        exact, batch = (r["median_ms"] for r in _interleaved(entries, 15))
        for entry in entries:
            entry.close()
        return bool(batch < exact)

    queries = next((q for q in (1, 2, 3, 4, 6, 8, 16, 32) if faster(rows, q)), 64)
    least_rows = next((n for n in (4096, 8192, 16_384, 32_768, 65_536) if faster(n, 4 * queries)), 131_072)
    return Tuning(queries, least_rows, source=f"{device.name}, D = {dim}, k = {k}, float16")


def call_latency(rows: int = 15_000, dim: int = 512, k: int = 50, calls: int = 500) -> dict[str, float]:
    """Milliseconds of one whole call from Python, the terms on the GPU: launch, wait, answer as arrays."""
    device = open_device()
    terms = artemis_terms(1, dim, 5)
    with CudaScorer(Rows.of(unit_rows(rows, dim, 7).astype(np.float16))) as scorer:
        search = _filled(scorer, terms, k)
        spent = []
        with device.active():
            stream = device.new_stream()
            for _ in range(calls):
                begun = time.perf_counter()
                search.launch(stream)
                device.synchronize(stream)
                search.result()
                spent.append((time.perf_counter() - begun) * 1e3)
            search.close()
    return {"rows": rows, "median_ms": percentile(spent, 50), "p90_ms": percentile(spent, 90)}


def gemm_rate(size: int = 8192) -> float | None:
    """Operations a second of PyTorch's float16 matrix product, the rate that batches are held against."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    event: Any = torch.cuda.Event
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    spent = []
    for i in range(13):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        torch.matmul(a, b)
        end.record()
        end.synchronize()
        if i >= 3:
            spent.append(start.elapsed_time(end))
    return float(2 * size**3 / (percentile(spent, 50) * 1e-3))


@dataclasses.dataclass
class _Entry:
    name: str
    dtype: str
    verified: bool
    launch: Callable[[int, Any], object]
    """Enqueues one run on the given stream; the number picks the copy of the inputs."""
    read_bytes: int = 0
    extra_bytes: int = 0
    skipped: str = ""
    close: Callable[[], object] = lambda: None
    torch_stream: bool = False

    @staticmethod
    def of_scorer(name: str, dtype: str, scorer: CudaScorer, terms: QueryTerms, k: int) -> _Entry:
        search = _filled(scorer, terms, k)

        def close() -> None:
            with open_device().active():
                search.close()
            scorer.close()

        return _Entry(name, dtype, True, lambda _, stream: search.launch(stream), close=close)


def _filled(scorer: CudaScorer, terms: QueryTerms, k: int) -> CudaSearch:
    """A prepared search whose terms are on the GPU."""
    device = open_device()
    search = scorer.prepare(terms.queries, terms.numerators.shape[1], True, k)
    with device.active():
        device.upload(search.numerators, terms.numerators, None)
        if terms.weights is not None:
            device.upload(search.weights, terms.weights, None)
        device.synchronize(None)
    return search


def _ours(case: Case, values: npt.NDArray[np.float32], terms: QueryTerms, dtype: str) -> list[_Entry]:
    """The stored rows, the int8 shadow of float16 rows, and reading the same bytes."""
    stored = _stored(values, dtype)
    row_bytes = stored.blocks[0].nbytes
    copies = max(1, min(8, math.ceil(_CACHE_BYTES / max(1, row_bytes))))
    device = open_device()
    entries = [_reader(f"read/{dtype}", dtype, row_bytes, copies)]
    for scan in ("stored", "int8") if dtype == "float16" else ("stored",):
        scorers = [CudaScorer(stored, scan="int8" if scan == "int8" else "stored") for _ in range(copies)]
        searches = [_filled(scorer, terms, case.k) for scorer in scorers]
        with device.active():
            for search in searches:
                search.launch(None)
            device.synchronize(None)
            answers = [search.result() for search in searches]
        verified = all(_verify(answer, terms, stored) for answer in answers)

        def close(searches: list[CudaSearch] = searches, scorers: list[CudaScorer] = scorers) -> None:
            with device.active():
                for search in searches:
                    search.close()
            for scorer in scorers:
                scorer.close()

        def launch(i: int, stream: Any, searches: list[CudaSearch] = searches) -> None:
            searches[i % len(searches)].launch(stream)

        entries.append(
            _Entry(
                f"cir/cuda{'-exact-from-int8' if scan == 'int8' else ''}",
                dtype,
                verified,
                launch,
                row_bytes // 2 if scan == "int8" else row_bytes,
                close=close,
            )
        )
    return entries


def _stored(values: npt.NDArray[np.float32], dtype: str) -> Rows:
    return quantise(values) if dtype == "int8" else Rows.of(values.astype(dtype))


def _verify(answer: TopK, terms: QueryTerms, rows: Rows) -> bool:
    """Scores against the float64 definition, and that no row of a sample of the gallery was left out."""
    some = np.unique(np.linspace(0, terms.queries - 1, 4).astype(int))
    sample = np.unique(np.linspace(0, rows.count - 1, 20_000).astype(np.int64))
    for q in some:
        chosen = answer.rows[q]
        exact = term_scores(terms[int(q)], rows.take(chosen).astype(np.float64))[0].sum(axis=0)
        if np.abs(answer.scores[q] - exact).max() > _TOLERANCE or (np.diff(answer.scores[q]) > 0).any():
            return False
        others = np.setdiff1d(sample, chosen)
        left_out = term_scores(terms[int(q)], rows.take(others).astype(np.float64))[0].sum(axis=0)
        if left_out.max(initial=-np.inf) > answer.scores[q, -1] + _TOLERANCE:
            return False
    return True


def _reader(name: str, dtype: str, nbytes: int, copies: int) -> _Entry:
    """The roofline: a kernel that reads the bytes of the rows and nothing else."""
    device = open_device()
    blocks = 4 * device.multiprocessors
    with device.active():
        memory = [device.allocate(nbytes) for _ in range(copies)]
        for m in memory:
            device.zero(m.address, nbytes, None)
        mixed = device.allocate(blocks * 256 * 4)
        device.synchronize(None)

    def launch(i: int, stream: Any) -> None:
        arguments = ReadArguments(memory[i % copies].address, mixed.address, nbytes // 16)
        device.launch("read_bytes", (blocks, 1), 0, arguments, stream)

    def close() -> None:
        with device.active():
            for m in [*memory, mixed]:
                m.free()

    return _Entry(name, dtype, True, launch, nbytes, close=close)


def _in_pytorch(case: Case, values: npt.NDArray[np.float32], terms: QueryTerms) -> list[_Entry]:
    """Baselines in PyTorch on float16 rows, the fastest type it has for these."""
    names = (
        "pytorch/literal-loop",
        "pytorch/literal-compiled",
        "pytorch/two-gemms-topk",
        "pytorch/one-product-topk",
        "pytorch/copy",
    )
    if importlib.util.find_spec("torch") is None:
        return [
            _Entry(n, "float16", False, lambda *_: None, skipped="PyTorch is not installed") for n in names
        ]
    import torch

    if not torch.cuda.is_available():
        return [
            _Entry(n, "float16", False, lambda *_: None, skipped="this PyTorch has no CUDA") for n in names
        ]
    half = torch.from_numpy(values).cuda().half()
    assert terms.weights is not None
    n = torch.from_numpy(terms.numerators).cuda()
    w = torch.from_numpy(terms.weights).cuda()
    k = case.k

    def literal(q: int) -> Any:
        # As the authors loop it: weight, normalise and multiply, one query at a time, in float32.
        t = half.float()
        score = torch.zeros(len(t), device="cuda")
        for j in range(2):
            a = w[q, j].sqrt()
            unit = torch.nn.functional.normalize(t * a, dim=1)
            score = score + unit @ (n[q, j] / a)
        return score.topk(k)

    def loop(_i: int, _s: Any) -> Any:
        answers = [literal(q) for q in range(case.queries)]
        return answers[0]

    compiled = torch.compile(literal)

    def compiled_loop(_i: int, _s: Any) -> Any:
        answers = [compiled(q) for q in range(case.queries)]
        return answers[0]

    # Scaled so that the largest weight is 1: float16 cannot hold softmax weights squared.
    peak = w.amax(dim=-1, keepdim=True)
    n_half = (n / peak.sqrt()).half()
    w_half = (w / peak).half()
    flat_n, flat_w = n_half.flatten(0, 1).T.contiguous(), w_half.flatten(0, 1).T.contiguous()

    def gemms(_i: int, _s: Any) -> Any:
        products = (half @ flat_n).float()
        squares = ((half * half) @ flat_w).float()
        score = (products * squares.rsqrt()).view(len(half), case.queries, 2).sum(dim=2)
        return score.topk(k, dim=0)

    plain = n_half[:, 0].T.contiguous()

    def product(_i: int, _s: Any) -> Any:
        return (half @ plain).topk(k, dim=0)

    other = torch.empty_like(half)
    score_bytes = case.rows * case.queries * 2 * 4
    too_long = (
        "" if case.queries <= _MOST_EAGER_QUERIES else "one query at a time, so it scales with the queries"
    )
    too_large = "" if score_bytes * 2 <= _MOST_SCORE_BYTES else "its matrix of scores does not fit"
    size = half.nbytes
    calls = (loop, compiled_loop, gemms, product, lambda *_: other.copy_(half))
    why = (too_long, too_long, too_large, too_large, "")
    extra = (
        case.rows * case.dim * 4,
        case.rows * case.dim * 4,
        3 * score_bytes + size,
        score_bytes // 2,
        size,
    )
    rows = values.astype(np.float16).astype(np.float64)
    by_term = term_scores(terms[0], rows)[0].sum(axis=0)
    by_product = rows @ plain[:, 0].double().cpu().numpy()
    expected = (by_term, by_term, by_term, by_product, None)
    entries = []
    for name, call, e, skipped, exact in zip(names, calls, extra, why, expected, strict=True):
        verified = bool(skipped)
        if not skipped:
            try:
                verified = exact is None or _agrees(call(0, None), exact)
            except RuntimeError as error:  # a compiler that is not there, memory that does not suffice
                skipped = str(error).splitlines()[0]
        nbytes = size * (2 if name.endswith("copy") else 1)
        entries.append(_Entry(name, "float16", verified, call, nbytes, e, skipped, torch_stream=True))
    return entries


def _agrees(answer: Any, exact: npt.NDArray[np.float64]) -> bool:
    """Whether PyTorch's top-k of the first query is that of the scores, as far as float16 products tell."""
    scores, rows = (part.cpu().numpy() for part in answer)
    scores, rows = (part[:, 0] if part.ndim == 2 else part for part in (scores, rows))
    worst = np.abs(scores - exact[rows]).max()
    best = np.sort(exact)[::-1][: len(rows)]
    return bool(worst <= 2e-2 and np.abs(exact[rows] - best).max() <= 2e-2)


def _interleaved(entries: list[_Entry], samples: int) -> list[dict[str, Any]]:
    """Each sample runs every entry once, so that clocks and neighbours weigh on all alike."""
    import pycuda.driver as driver

    live = [e for e in entries if e.verified and not e.skipped]
    device = open_device()
    times: dict[int, list[float]] = {id(e): [] for e in live}
    with device.active():
        own = device.new_stream()
        for i in range(-3, samples):
            for entry in live:
                # PyTorch's current stream is the legacy default one, which None names here.
                stream = None if entry.torch_stream else own
                start, end = driver.Event(), driver.Event()
                start.record(stream)
                entry.launch(i, stream)
                end.record(stream)
                end.synchronize()
                if i >= 0:
                    times[id(entry)].append(float(end.time_since(start)))
    results = []
    rooflines = {
        e.dtype: percentile(times[id(e)], 50) / e.read_bytes for e in live if e.name.startswith("read/")
    }
    for entry in entries:
        out: dict[str, Any] = {"name": entry.name, "dtype": entry.dtype, "verified": entry.verified}
        if entry.skipped:
            results.append({**out, "skipped": entry.skipped})
        elif not entry.verified:
            results.append({**out, "skipped": "the answer is wrong"})
        else:
            spent = times[id(entry)]
            median = percentile(spent, 50)
            per_byte = rooflines.get(entry.dtype)
            results.append(
                {
                    **out,
                    "median_ms": median,
                    "p10_ms": percentile(spent, 10),
                    "p90_ms": percentile(spent, 90),
                    "of_roofline": median / (per_byte * entry.read_bytes)
                    if per_byte and entry.read_bytes
                    else None,
                    "extra_bytes": entry.extra_bytes,
                }
            )
    return results
