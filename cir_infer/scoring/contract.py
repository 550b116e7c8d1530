"""What goes into a scorer and what comes out: the one contract behind every system and backend.

A query of any composed-retrieval system is a small set of J terms, each a numerator n_j and, for
weighted systems, a weight w_j >= 0, both in R^D. Over a gallery row t

    term_j(q, t) = (n_j . t) / sqrt(w_j . t^2)      with weights
    term_j(q, t) =  n_j . t                         without (rows of cosine systems have unit length)
    score(q, t)  = sum_j term_j(q, t)

ARTEMIS (Delmas et al., ICLR 2022, eq. 1, 2, 4) is J = 2 with weights: implicit similarity has
n = a*a*r / |a*r|, w = a*a and explicit matching n = b*l2(T m), w = b*b. A term whose squared norm
w.t^2 is 0 is 0, so an all-zero row scores 0. A row that holds NaN or infinity, or of which a term
or the score is beyond float32, is never ranked.

Where an item is M vectors t_1 ... t_M ("tokens"), as BLIP-2's 32 query tokens are, each term is its largest
over them, and the terms still add up:

    term_j(q, item) = max_m term_j(q, t_m)

A row number is then an item's. An item of which any vector is not finite is never ranked, nor one of which a
largest term or the score is beyond float32.

Terms are float64, their sums taken in one order (`reference.exact_terms`), and a score is the float32
nearest to their sum: rounded once. Every scorer gives these very bits for every row that it returns,
whatever else was asked, and ranks by them (kernels/score/README.md has the proof).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ScoringError, shown
from cir_infer.inputs.arrays import is_masked, unmasked

__all__ = [
    "MOST_ITEM_VALUES",
    "MOST_TOKENS",
    "MOST_VALUES",
    "SCORER_STAYS",
    "QueryTerms",
    "Rows",
    "Scorer",
    "TopK",
    "most_bytes",
]

SCORER_STAYS = (
    "a scorer",
    "pickle the Searcher, or make another scorer over the same rows where it is wanted",
)
"""Why one that holds more of its process than arrays is neither copied nor pickled, see `Staying`."""

MOST_VALUES = 1 << 20
"""Of a row. The kernels count values of a row in 32 bits, and the bounds of rounding hold up to here."""

MOST_TOKENS = 1 << 16
"""Vectors of an item."""
MOST_ITEM_VALUES = 1 << 24
"""Of all vectors of an item together."""

_ROW_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int8))


@cache
def most_bytes() -> int:
    """What the terms or the answer of one call may take: half of the memory, but 4 GiB at least."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        memory = 0
    return max(memory // 2, 1 << 32)


def _plain(value: Any, what: str) -> Any:
    """An array of a subclass (a memory map, a matrix) as a plain one; anything else as it is.

    Raises:
        ScoringError: some of it is masked: what lies under a mask was never meant to be used.
    """
    if not isinstance(value, np.ndarray) or type(value) is np.ndarray:
        return value
    if is_masked(value):
        raise ScoringError(f"{what} are masked in some places; expected arrays of values that all count")
    return np.asarray(value)


@dataclass(frozen=True)
class QueryTerms:
    """Q queries as J terms each.

    Attributes:
        numerators: float32 (Q, J, D).
        weights: float32 (Q, J, D), finite and not negative, or None for plain dot products. Any
            positive factor of n_j and sqrt(w_j) together leaves the score as it is.
        names: the J terms' names, e.g. ("implicit_similarity", "explicit_matching").

    Raises:
        ScoringError: shapes or dtypes differ from the above, or a value is not finite.
    """

    numerators: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        n, w = self.numerators, self.weights
        if type(n) is not np.ndarray or type(w) is not np.ndarray:
            n, w = _plain(n, "the numerators"), _plain(w, "the weights")
            object.__setattr__(self, "numerators", n)
            object.__setattr__(self, "weights", w)
        if not isinstance(n, np.ndarray) or not (w is None or isinstance(w, np.ndarray)):
            raise ScoringError(
                f"numerators are {type(n).__name__} and weights {type(w).__name__}; expected NumPy arrays"
            )
        if n.ndim != 3 or n.dtype != np.float32:
            raise ScoringError(f"numerators are {n.dtype} {n.shape}; expected float32 (Q, J, D)")
        if n.nbytes > most_bytes():
            raise ScoringError(
                f"the terms of {n.shape[0]} queries take {n.nbytes} bytes; ask fewer queries at once"
            )
        if not isinstance(self.names, (tuple, list)) or not all(isinstance(name, str) for name in self.names):
            raise ScoringError(f"the names of terms are {shown(self.names)}; expected a tuple of texts")
        if len(self.names) != n.shape[1] or n.shape[1] < 1:
            raise ScoringError(
                f"{len(self.names)} term names for {n.shape[1]} terms; expected one name a term"
            )
        if not np.isfinite(n).all():
            raise ScoringError("a numerator holds NaN or infinity; expected finite query terms")
        if w is None:
            return
        if w.shape != n.shape or w.dtype != np.float32:
            raise ScoringError(
                f"weights are {w.dtype} {w.shape}; expected float32 {n.shape}, as the numerators"
            )
        if not (w.min(initial=0.0) >= 0 and w.max(initial=0.0) < np.inf):  # NaN is neither
            raise ScoringError("a weight is negative, NaN or infinite; expected finite weights >= 0")

    @property
    def queries(self) -> int:
        """Q, the number of queries."""
        return int(self.numerators.shape[0])

    @property
    def dimension(self) -> int:
        """D, the length of a row."""
        return int(self.numerators.shape[2])

    def __getitem__(self, index: int | slice) -> QueryTerms:
        """The chosen queries, always with a leading query axis."""
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return QueryTerms(
            self.numerators[index], None if self.weights is None else self.weights[index], self.names
        )


@dataclass(frozen=True)
class Rows:
    """Gallery rows as one or more C-contiguous blocks; row numbers run through the blocks in order.

    Attributes:
        blocks: arrays (n_i, D), or (n_i, M, D) where an item is M vectors; all of one type: float32, float16
            or int8. May be memory-mapped.
        scales: for int8 only, float32 (n_i,) or (n_i, M) a block: vector = int8 * scale. Weighted terms do
            not need it (they are invariant to a vector's scale); plain dot products do.

    Raises:
        ScoringError: mixed types or widths, a type that no kernel reads, scales missing or stray.
    """

    blocks: tuple[npt.NDArray[Any], ...]
    scales: tuple[npt.NDArray[np.float32], ...] | None = None

    def __post_init__(self) -> None:
        for name in ("blocks", "scales"):
            arrays = getattr(self, name)
            if not isinstance(arrays, (tuple, list)) and not (name == "scales" and arrays is None):
                raise ScoringError(f"{name} are {shown(arrays)}; expected a tuple of arrays")
            if arrays is not None:
                object.__setattr__(self, name, tuple(_plain(array, f"the {name}") for array in arrays))
        if not self.blocks:
            raise ScoringError("no row blocks; expected at least one (it may have zero rows)")
        if not all(isinstance(array, np.ndarray) for array in (*self.blocks, *(self.scales or ()))):
            raise ScoringError("a row block or its scales are no NumPy array; pass numpy.asarray of them")
        first = self.blocks[0]
        if first.dtype not in _ROW_TYPES:
            raise ScoringError(f"rows are {first.dtype}; expected float32, float16 or int8")
        for block in self.blocks:
            if block.ndim not in (2, 3) or block.shape[1:] != first.shape[1:] or block.dtype != first.dtype:
                expected = ", ".join(["n", *(str(length) for length in first.shape[1:])])
                raise ScoringError(
                    f"a row block is {block.dtype} {block.shape}; expected {first.dtype} ({expected}) like "
                    "the first, with two or three axes"
                )
            if not block.flags.c_contiguous:
                raise ScoringError("a row block is not C-contiguous; pass numpy.ascontiguousarray(block)")
        if not 1 <= first.shape[-1] <= MOST_VALUES:
            raise ScoringError(f"rows have {first.shape[-1]} values; expected 1 to {MOST_VALUES}")
        tokens = self.tokens_per_item
        if not (1 <= tokens <= MOST_TOKENS and tokens * first.shape[-1] <= MOST_ITEM_VALUES):
            raise ScoringError(
                f"an item has {tokens} vectors of {first.shape[-1]} values; expected 1 to {MOST_TOKENS} "
                f"vectors and at most {MOST_ITEM_VALUES} values"
            )
        if (first.dtype == np.int8) != (self.scales is not None):
            raise ScoringError("scales belong to int8 rows, and int8 rows need them")
        if self.scales is not None:
            shapes = [block.shape[:-1] for block in self.blocks]
            if [s.shape for s in self.scales] != shapes or any(s.dtype != np.float32 for s in self.scales):
                raise ScoringError(
                    f"int8 scales do not fit; expected float32 arrays of shapes {shown(shapes)}"
                )

    @staticmethod
    def of(array: npt.NDArray[Any], scales: npt.NDArray[np.float32] | None = None) -> Rows:
        """One array (N, D), or (N, M, D), as rows."""
        return Rows((array,), None if scales is None else (scales,))

    @property
    def count(self) -> int:
        """N, the number of rows: of items where they have several vectors."""
        return sum(len(block) for block in self.blocks)

    @property
    def dimension(self) -> int:
        """D, the length of a row, or of each vector of an item."""
        return int(self.blocks[0].shape[-1])

    @property
    def tokens_per_item(self) -> int:
        """M, the number of vectors of an item; 1 for rows."""
        return int(self.blocks[0].shape[1]) if self.blocks[0].ndim == 3 else 1

    @property
    def has_tokens(self) -> bool:
        """Whether a row number is that of an item of vectors, be it one."""
        return self.blocks[0].ndim == 3

    @property
    def vectors(self) -> Rows:
        """Every vector as a row of its own, M * item + token; rows of one vector as they are."""
        if not self.has_tokens:
            return self
        scales = None if self.scales is None else tuple(scale.reshape(-1) for scale in self.scales)
        return Rows(tuple(block.reshape(-1, self.dimension) for block in self.blocks), scales)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type of a row."""
        return self.blocks[0].dtype

    def take(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The chosen rows as float32 (n, D) or (n, M, D), scales applied. Row numbers must be in range."""
        try:
            wanted = unmasked(rows)
        except Exception as error:  # what arrays of others raise
            raise ScoringError(f"rows are {shown(rows)}; expected whole numbers") from error
        if wanted.size and (wanted.ndim != 1 or wanted.dtype.kind not in "iu"):
            raise ScoringError(f"rows are {shown(rows)}; expected a list of whole numbers")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.count):
            raise ScoringError(f"rows {wanted.min()} to {wanted.max()} asked of {self.count:,} rows")
        wanted = wanted.astype(np.int64, copy=False).reshape(-1)
        if len(self.blocks) == 1 and self.scales is None:  # most galleries, and one row of a refined Hit
            return self.blocks[0][wanted].astype(np.float32, copy=False)
        starts = np.cumsum([0, *(len(block) for block in self.blocks)])
        out = np.empty((len(wanted), *self.blocks[0].shape[1:]), np.float32)
        which = np.searchsorted(starts, wanted, side="right") - 1
        for b in np.flatnonzero(np.bincount(which)).tolist():
            at = which == b
            local = wanted[at] - starts[b]
            out[at] = self.blocks[b][local]
            if self.scales is not None:
                with np.errstate(over="ignore", invalid="ignore"):  # rows that are never ranked
                    out[at] *= self.scales[b][local][..., None]
        return out

    def one(self, row: int) -> Rows:
        """A copy of one row as it is stored, with its scales. The row number must be in range."""
        for b, block in enumerate(self.blocks):
            if 0 <= row < len(block):
                scales = None if self.scales is None else (np.array(self.scales[b][row : row + 1]),)
                return Rows((np.array(block[row : row + 1]),), scales)
            row -= len(block)
        raise ScoringError(f"row {shown(row)} asked of {self.count:,} rows")


class TopK(NamedTuple):
    """The best rows of each query, best first; equal scores are ordered by the smaller row number.

    Attributes:
        scores: float32 (Q, k), -inf where fewer than k rows qualify.
        rows: int64 (Q, k), -1 where fewer than k rows qualify.
        terms: float32 (Q, k, J), each term of the score, NaN where fewer than k rows qualify.
        tokens: of items of several vectors, int32 (Q, k, J): the first of the item's vectors whose term is
            this one, -1 where fewer than k items qualify. None for rows of one vector.
    """

    scores: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    terms: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int32] | None = None

    @staticmethod
    def empty(queries: int, k: int, terms: int, tokens: bool = False) -> TopK:
        """No row at all for so many queries."""
        return TopK(
            np.full((queries, k), -np.inf, np.float32),
            np.full((queries, k), -1, np.int64),
            np.full((queries, k, terms), np.nan, np.float32),
            np.full((queries, k, terms), -1, np.int32) if tokens else None,
        )

    @staticmethod
    def joined(parts: Sequence[TopK]) -> TopK:
        """The answers to several groups of queries, at least one, as those to all of them."""
        if len(parts) == 1:
            return parts[0]
        together: list[Any] = [
            np.concatenate(arrays) for arrays in zip(*parts, strict=True) if arrays[0] is not None
        ]
        return TopK(*together)

    def widened(self, k: int) -> TopK:
        """The same rows with k places, where more were asked for than there are rows."""
        queries, width, terms = self.terms.shape
        if width >= k:
            return self
        out = TopK.empty(queries, k, terms, self.tokens is not None)
        out.scores[:, :width] = self.scores
        out.rows[:, :width] = self.rows
        out.terms[:, :width] = self.terms
        if out.tokens is not None and self.tokens is not None:
            out.tokens[:, :width] = self.tokens
        return out


@runtime_checkable
class Scorer(Protocol):
    """Exact top-k over a fixed set of rows. Implementations may be called from several threads."""

    @property
    def name(self) -> str:
        """The backend in a word or two, e.g. "reference" or "cpu (avx512)"."""
        ...

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """The k best rows of each query.

        Args:
            terms: Q queries over the rows' dimension D.
            k: at least 1; may exceed the number of rows (the rest stays empty), as far as the answer
                fits into memory (`most_bytes`).
            allow: uint8 (ceil(N / 8),), bit r % 8 (least significant first, as
                `numpy.packbits(..., bitorder="little")`) of byte r // 8 says whether row r may
                be returned; None allows every row.

        Returns:
            See `TopK`. Its width is always k.

        Raises:
            ScoringError: k is no whole number of at least 1, the answer would not fit into memory, another
                dimension than the rows', a mask of another length or type.
        """
        ...
