"""From vectors to stored rows: the checks that keep a gallery clean, and the three row types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery.rows.tensors import Tensor
from cir_infer.inputs.arguments import checked_word
from cir_infer.inputs.arrays import unmasked
from cir_infer.scoring.contract import MOST_ITEM_VALUES, MOST_TOKENS, MOST_VALUES

__all__ = [
    "ROW_TYPES",
    "as_matrix",
    "check_row_type",
    "check_shape",
    "checked_vectors",
    "faults",
    "quantise",
    "row_shape",
    "row_tensors",
    "rows_at_once",
    "shape_text",
    "to_rows",
]

_VALUES_AT_ONCE = 1 << 26
ROW_TYPES = ("float32", "float16", "int8")
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_FLOAT16_NORMAL = float(np.finfo(np.float16).smallest_normal)
_FLOAT32_NORMAL = np.finfo(np.float32).smallest_normal
_INT8_MOST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
"""So that the largest value of a row is finite whatever its scale is rounded to."""
_INT8_LEAST = 127 * float(_FLOAT32_NORMAL)
"""Below it a scale would be no normal number: all digits of a row are lost, and then the row."""


def check_row_type(dtype: str) -> None:
    """Raise `UsageError` unless a gallery can store rows so."""
    checked_word("dtype", dtype, ROW_TYPES)


def row_shape(tokens: int, dimension: int) -> tuple[int, ...]:
    """The shape of a row: (D,), or (M, D) where an item has several vectors."""
    return (dimension,) if tokens == 1 else (tokens, dimension)


def shape_text(tokens: int, dimension: int) -> str:
    """The same for people: "512", or "32 x 256"."""
    return " x ".join(str(length) for length in row_shape(tokens, dimension))


def rows_at_once(shape: tuple[int, ...], most: int) -> int:
    """How many rows of a shape are worked on together: at most so many, of large rows few, one at least."""
    return max(1, min(most, _VALUES_AT_ONCE // max(1, math.prod(shape))))


def check_shape(tokens: int, dimension: int) -> None:
    """Raise `UsageError` unless rows can have so many vectors of so many values."""
    if not 1 <= dimension <= MOST_VALUES:
        raise UsageError(f"dimension is {shown(dimension)}; expected 1 to {MOST_VALUES}")
    if not (1 <= tokens <= MOST_TOKENS and tokens * dimension <= MOST_ITEM_VALUES):
        raise UsageError(
            f"an item has {shown(tokens)} vectors of {dimension} values; expected 1 to {MOST_TOKENS} "
            f"vectors, and at most {MOST_ITEM_VALUES} values in all"
        )


def as_matrix(vectors: Any, count: int) -> npt.NDArray[Any]:
    """Vectors of any kind as an array of numbers (n, D) or (n, M, D), a memory-mapped one as it is.

    Raises:
        GalleryError: they are no `count` vectors.
    """
    try:
        array = unmasked(vectors)
    except Exception as error:  # what arrays and tensors of others raise
        raise GalleryError(
            f"vectors are no array of numbers ({shown(error, 200)}); expected ({count}, D)"
        ) from None
    if (
        array.ndim not in (2, 3)
        or 0 in array.shape[1:]
        or array.shape[0] != count
        or array.dtype.kind not in "fiu"
    ):
        raise GalleryError(
            f"vectors are {array.dtype} of shape {shown(array.shape, 60)} for {count:,} ids; "
            f"expected numbers of shape ({count}, D), or ({count}, M, D) for M vectors an item"
        )
    return array


def checked_vectors(
    vectors: Any, ids: Sequence[str], shape: tuple[int, ...], dtype: str
) -> npt.NDArray[np.float32]:
    """The vectors as C-contiguous float32 (n, *shape), each fit to be stored as `dtype`.

    Raises:
        GalleryError: not n rows of that shape, or one of them cannot be stored (see `faults`).
            The message names the id of the first.
    """
    try:
        array = unmasked(vectors)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"an array of {array.dtype}")
    except Exception as error:  # what arrays and tensors of others raise
        raise GalleryError(
            f"vectors are no array of numbers ({shown(error, 200)}); expected {('n', *shape)}"
        ) from None
    if array.shape != (len(ids), *shape):
        kind = "the dimension" if len(shape) == 1 else "items of so many vectors, and the dimension"
        raise GalleryError(
            f"vectors have shape {shown(array.shape, 60)} for {len(ids):,} ids; expected "
            f"{(len(ids), *shape)}, {kind} of this gallery"
        )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(array, np.float32)
    bad = faults(array, dtype)
    if bad:
        first = min(bad)
        more = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
        raise GalleryError(f"the vector of id {shown(ids[first])}{more} {bad[first]}")
    return array


def faults(vectors: npt.NDArray[np.float32], dtype: str) -> dict[int, str]:
    """Which vectors cannot be stored, and why: NaN or infinity, zero, beyond the range of the row type.

    Args:
        vectors: float32 (n, D), or (n, M, D): a row of several vectors has the fault that one of them has.
        dtype: the row type.

    Returns:
        By the row's number, how the sentence "the vector of ... " goes on.
    """
    peak = np.abs(vectors).max(axis=-1, initial=0.0)
    remedy = "scale the vectors, or create the gallery with dtype='float32'"
    found: dict[int, str] = {}
    problems = [
        (~np.isfinite(peak), "holds NaN or infinity (as float32); expected finite numbers"),
        (peak == 0, "is zero everywhere, so it has no direction to compare; leave the item out"),
    ]
    if dtype == "float16":
        problems += [
            (peak > _FLOAT16_MAX, f"holds a value beyond float16 ({_FLOAT16_MAX:g}); {remedy}"),
            (peak < _FLOAT16_NORMAL, f"is too small for float16 (below {_FLOAT16_NORMAL:.1e}); {remedy}"),
        ]
    if dtype == "int8":
        problems += [(peak < _INT8_LEAST, f"is too small for int8 (below {_INT8_LEAST:.1e}); {remedy}")]
    for bad, text in problems:
        for number in np.flatnonzero(bad if bad.ndim == 1 else bad.any(axis=1)):
            which = (
                "" if bad.ndim == 1 else f"is {bad.shape[1]} vectors, and number {int(bad[number].argmax())} "
            )
            found.setdefault(int(number), which + text)
    return found


def quantise(vectors: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Rows as int8 with one scale for each vector, the largest magnitude at 127: row ~ int8 * scale."""
    rows = np.asarray(vectors, np.float32)
    peak = np.abs(rows).max(axis=-1, initial=0.0)
    # The smallest normal number keeps the division finite; rows that would be coarser by it are no rows.
    scales = np.clip(peak / np.float32(127), _FLOAT32_NORMAL, _INT8_MOST_SCALE).astype(np.float32)
    return np.rint(rows / scales[..., None]).astype(np.int8), scales


def to_rows(
    vectors: npt.NDArray[np.float32], dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32] | None]:
    """Checked vectors in the stored type, with scales for int8."""
    if dtype == "int8":
        return quantise(vectors)
    return np.ascontiguousarray(vectors, np.dtype(dtype)), None


def row_tensors(
    dtype: str,
    stored: npt.NDArray[Any],
    scales: npt.NDArray[np.float32] | None,
    keys: npt.NDArray[np.int64] | None = None,
) -> list[Tensor]:
    """Rows as the tensors of a segment.

    Args:
        dtype: the row type.
        stored: (n, D) or (n, M, D) in the stored type.
        scales: float32 (n,) or (n, M) for int8 rows.
        keys: int64 (n,) ascending; None where they are consecutive.
    """
    tensors = [Tensor("rows", dtype, stored.shape, [stored])]
    if scales is not None:
        tensors.append(Tensor("scales", "float32", scales.shape, [scales]))
    if keys is not None and keys[-1] - keys[0] + 1 != len(keys):
        tensors.append(Tensor("keys", "int64", keys.shape, [keys]))
    return tensors
