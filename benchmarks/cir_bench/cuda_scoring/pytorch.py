"""The same answer in PyTorch, and a device-to-device copy; on a GPU, or on the CPU where a test asks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING, Any

from cir_bench.cuda_scoring.entries import EVERYTHING, Entry, skipped
from cir_bench.cuda_scoring.place import Place
from cir_bench.cuda_scoring.workload import Workload
from cir_bench.torch_scoring import literal_scores, ranked, two_product_scores
from cir_infer.extras import is_installed

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["in_pytorch", "rows_in_pytorch", "why_no_pytorch"]

_TIMED_QUERIES = 8
"""A loop over queries is timed on so many, and its time counted for all."""
_BLOCK = 1 << 30
"""Scores that a matrix product makes at a time; a larger batch comes in parts."""
_HALF_TOLERANCE = 2e-2
_SINGLE_TOLERANCE = 1e-4


def why_no_pytorch(place: Place) -> str:
    """Why PyTorch cannot be timed there; empty where it can."""
    if not is_installed("torch"):
        return "PyTorch is not installed"
    import torch

    return "this PyTorch has no CUDA" if place.torch == "cuda" and not torch.cuda.is_available() else ""


def rows_in_pytorch(place: Place, work: Workload) -> Tensor:
    """The rows as they are stored, (N, D), where PyTorch computes."""
    import torch

    return torch.from_numpy(work.rows.blocks[0]).to(place.torch)


def in_pytorch(
    place: Place, work: Workload, compiler: str = "inductor", wanted: Container[str] = EVERYTHING
) -> Iterator[Entry]:
    """The authors' loop in float32, eager and compiled; float16 products with top-k; a copy.

    Args:
        place: where.
        work: float16 rows.
        compiler: backend of `torch.compile`.
        wanted: names of the entries to make.
    """
    entries: dict[str, Callable[[], Entry]] = {
        "torch/literal": lambda: _literal(place, work, None),
        "torch/literal-compiled": lambda: _literal(place, work, compiler),
        "torch/two-gemms-topk": lambda: _two_gemms(place, work),
        "torch/gemv-topk": lambda: _gemv(place, work),
        "torch/copy": lambda: _copy(place, work),
    }
    missing = why_no_pytorch(place)
    for name, make in entries.items():
        if name not in wanted:
            continue
        if missing:
            yield skipped(name, work.dtype, missing)
            continue
        try:
            entry = make()
        except RuntimeError as error:  # memory that does not suffice, a compiler that is not there
            entry = skipped(name, work.dtype, error)
        entry.name, entry.default_stream = name, True
        yield entry


def _literal(place: Place, work: Workload, compiler: str | None) -> Entry:
    """One query at a time over float32 rows: weigh, normalise, multiply, sum, sort, for each term."""
    import torch

    rows = rows_in_pytorch(place, work).float()
    n, w = _terms(place, work)
    k, timed = work.case.k, min(work.case.queries, _TIMED_QUERIES)

    def best(numerators: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
        return ranked(literal_scores(numerators, weights, rows), k)

    ask = best if compiler is None else torch.compile(best, backend=compiler)

    def run(_i: int, _stream: Any) -> Tensor:
        with torch.inference_mode():
            return torch.stack([ask(n[q], w[q], rows) for q in range(timed)])

    right = work.is_best(run(0, None).cpu().numpy(), None, work.terms, _SINGLE_TOLERANCE)
    return Entry(
        "",
        "float32",
        run,
        right,
        read_bytes=rows.nbytes,
        extra_bytes=rows.nbytes,
        times=work.case.queries / timed,
        facts={"queries_timed": timed} if timed < work.case.queries else {},
    )


def _two_gemms(place: Place, work: Workload) -> Entry:
    """All queries at once: products with the rows and with their squares, the score matrix, top-k."""
    import torch

    rows = rows_in_pytorch(place, work)
    squares = rows * rows
    n, w = _terms(place, work)
    # Scaled so that the largest weight is 1, which leaves the score alone: float16 cannot hold softmax
    # weights squared.
    peak = w.amax(dim=-1, keepdim=True)
    n, w = (n / peak.sqrt()).to(rows.dtype), (w / peak).to(rows.dtype)
    step = max(1, _BLOCK // (len(rows) * n.shape[1]))

    def run(_i: int, _stream: Any) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            parts = [
                two_product_scores(n[q : q + step], w[q : q + step], rows, squares).topk(work.case.k)
                for q in range(0, len(n), step)
            ]
            return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])

    right = work.is_best(*_answer(run(0, None)), work.terms, _HALF_TOLERANCE)
    scores = min(step, len(n)) * len(rows) * rows.itemsize
    return Entry("", work.dtype, run, right, read_bytes=rows.nbytes, extra_bytes=squares.nbytes + 4 * scores)


def _gemv(place: Place, work: Workload) -> Entry:
    """What a plain single-vector search costs: one product with the rows, top-k."""
    import torch

    rows = rows_in_pytorch(place, work)
    vectors = torch.from_numpy(work.dots.numerators[:, 0]).to(place.torch).to(rows.dtype)
    step = max(1, _BLOCK // len(rows))

    def run(_i: int, _stream: Any) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            parts = [(vectors[q : q + step] @ rows.T).topk(work.case.k) for q in range(0, len(vectors), step)]
            return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])

    right = work.is_best(*_answer(run(0, None)), work.dots, _HALF_TOLERANCE)
    scores = min(step, len(vectors)) * len(rows) * rows.itemsize
    return Entry("", work.dtype, run, right, read_bytes=rows.nbytes, extra_bytes=scores)


def _copy(place: Place, work: Workload) -> Entry:
    """A device-to-device copy of the rows: the other roofline, of bytes read and written."""
    import torch

    rows = rows_in_pytorch(place, work)
    other = torch.empty_like(rows)

    def run(_i: int, _stream: Any) -> Tensor:
        return other.copy_(rows)

    right = bool(torch.equal(run(0, None), rows))
    return Entry("", work.dtype, run, right, read_bytes=2 * rows.nbytes, extra_bytes=rows.nbytes)


def _terms(place: Place, work: Workload) -> tuple[Tensor, Tensor]:
    import torch

    assert work.terms.weights is not None
    n, w = torch.from_numpy(work.terms.numerators), torch.from_numpy(work.terms.weights)
    return n.to(place.torch), w.to(place.torch)


def _answer(found: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    scores, rows = found
    return rows.cpu().numpy(), scores.float().cpu().numpy()
