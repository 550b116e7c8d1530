"""The checks that every scorer makes before it touches memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ScoringError, UsageError, shown
from cir_infer.inputs.arrays import is_masked
from cir_infer.scoring.contract import QueryTerms, most_bytes

__all__ = ["check_query", "check_sizes", "check_threads", "within_memory"]

_MOST_THREADS = 1024


def check_query(
    terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None, count: int, dimension: int
) -> None:
    """Raise `ScoringError` unless a query fits `count` rows of `dimension` values."""
    if not isinstance(terms, QueryTerms):
        raise ScoringError(f"terms are {shown(terms)}; expected QueryTerms")
    check_sizes(terms.queries, terms.numerators.shape[1], k)
    if terms.dimension != dimension:
        raise ScoringError(
            f"the query has {terms.dimension} dimensions and the rows have {dimension}; "
            "both must come from the same bundle"
        )
    if allow is None:
        return
    if not isinstance(allow, np.ndarray) or is_masked(allow):
        raise ScoringError(f"the row mask is a {type(allow).__name__}; expected an array of uint8")
    if allow.dtype != np.uint8 or allow.shape != ((count + 7) // 8,):
        raise ScoringError(
            f"the row mask is {allow.dtype} {allow.shape}; expected uint8 ({(count + 7) // 8},), "
            'as numpy.packbits(mask, bitorder="little") gives'
        )


def check_sizes(queries: int, terms: int, k: Any) -> None:
    """Raise `ScoringError` unless k is a number of rows whose answer a process can hold."""
    if not _is_whole(k) or k < 1:
        raise ScoringError(f"k is {shown(k)}; expected a whole number of at least 1")
    nbytes = int(k) * max(queries, 1) * (12 + 4 * terms)
    if nbytes > most_bytes():
        raise ScoringError(
            f"the answer of k = {shown(k)} rows to {queries} queries would take {shown(nbytes)} bytes; "
            "ask for fewer rows, or fewer queries at once"
        )


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number; to NumPy a length of time is one, too."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def check_threads(threads: Any) -> None:
    """Raise `UsageError` unless a number of threads is one, or None."""
    if threads is None:
        return
    if not _is_whole(threads) or not 1 <= threads <= _MOST_THREADS:
        raise UsageError(
            f"threads is {shown(threads)}; expected a whole number from 1 to {_MOST_THREADS}, "
            "or None for every core"
        )


@contextmanager
def within_memory(terms: QueryTerms, k: int) -> Iterator[None]:
    """A `MemoryError` inside becomes a `ScoringError` that says what was asked."""
    try:
        yield
    except MemoryError as error:
        raise ScoringError(
            f"not enough memory for k = {k} rows to {terms.queries} queries; "
            "ask for fewer rows, or fewer queries at once"
        ) from error
