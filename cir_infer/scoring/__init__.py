"""Scorers: exact top-k of QueryTerms over gallery rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cir_infer.errors import UsageError, shown

if TYPE_CHECKING:
    from cir_infer.scoring.contract import Rows, Scorer

__all__ = ["SCORERS", "make_scorer"]

SCORERS = ("auto", "cpu", "cpu-int8", "cuda", "cuda-int8", "reference")


def make_scorer(rows: Rows, backend: str = "auto", threads: int | None = None) -> Scorer:
    """A scorer over fixed rows. All of them give the same, exact answer.

    Args:
        rows: the gallery.
        backend: "cpu" reads the rows as they are stored; "cpu-int8" reads an int8 copy, which it
            makes and keeps in memory, and re-scores a proven short list; "cuda" and "cuda-int8" are
            the same on an NVIDIA GPU; "reference" is the definition in NumPy, for checking; "auto"
            is "cpu" (a `Searcher` takes "cuda" where its engine runs on the GPU).
        threads: CPU threads of a call; None for every core that the process may use.

    Raises:
        UsageError: an unknown backend.
        DeviceError: the backend cannot be used on this machine.
    """
    from cir_infer.inputs.arguments import checked_word
    from cir_infer.scoring import contract

    checked_word("scorer", backend, SCORERS)
    if not isinstance(rows, contract.Rows):
        raise UsageError(f"rows are {shown(rows)}; expected Rows, e.g. Rows.of(array)")
    if rows.has_tokens and backend in ("cuda", "cuda-int8"):
        from cir_infer.scoring.grouped import GroupedScorer

        return GroupedScorer(rows, lambda vectors: make_scorer(vectors, backend, threads))
    if backend in ("auto", "cpu"):
        from cir_infer.scoring.cpu import CpuScorer

        return CpuScorer(rows, threads=threads)
    if backend == "cpu-int8":
        from cir_infer.scoring.cpu import Int8Scorer

        return Int8Scorer(rows, threads=threads)
    if backend in ("cuda", "cuda-int8"):
        from cir_infer.scoring.cuda import CudaScorer

        return CudaScorer(rows, scan="int8" if backend == "cuda-int8" else "stored")
    from cir_infer.scoring.reference import ReferenceScorer

    return ReferenceScorer(rows)
