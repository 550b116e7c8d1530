"""The checks that every scorer makes before it touches memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ScoringError, shown
from cir_infer.scoring.contract import QueryTerms

__all__ = ["check_query"]


def check_query(
    terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None, count: int, dimension: int
) -> None:
    """Raise `ScoringError` unless a query fits `count` rows of `dimension` values."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ScoringError(f"k is {shown(k)}; expected a whole number of at least 1")
    if terms.dimension != dimension:
        raise ScoringError(
            f"the query has {terms.dimension} dimensions and the rows have {dimension}; "
            "both must come from the same bundle"
        )
    if allow is not None and (allow.dtype != np.uint8 or allow.shape != ((count + 7) // 8,)):
        raise ScoringError(
            f"the row mask is {allow.dtype} {allow.shape}; expected uint8 ({(count + 7) // 8},), "
            'as numpy.packbits(mask, bitorder="little") gives'
        )
