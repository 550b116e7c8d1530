"""Scorers: exact top-k of QueryTerms over gallery rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cir_infer.errors import UsageError

if TYPE_CHECKING:
    from cir_infer.scoring.contract import Rows, Scorer

__all__ = ["SCORERS", "make_scorer"]

SCORERS = ("auto", "reference")


def make_scorer(rows: Rows, backend: str = "auto") -> Scorer:
    """A scorer over fixed rows.

    Args:
        rows: the gallery.
        backend: one of `SCORERS`; "auto" takes the fastest that this machine has.

    Raises:
        UsageError: an unknown backend.
    """
    if backend in ("auto", "reference"):
        from cir_infer.scoring.reference import ReferenceScorer

        return ReferenceScorer(rows)
    raise UsageError(f"scorer is {backend!r}; expected one of {', '.join(SCORERS)}")
