"""Pickles of data sets, read without executing anything in them.

The unpickler can build plain values and NumPy arrays of numbers, and nothing else: a file that asks for
anything more is refused before anything happens. NumPy's own ways to restore an array trust what they are
told (pointers as values, elements of gigabytes); here they are told only what was checked.
"""

from __future__ import annotations

import math
import pickle
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cir_infer.foreign import check_pickle

__all__ = ["load_plain"]

_MOST_STEPS = 20_000_000
_LARGEST_ELEMENT = 4096
"""Bytes of an element of an array, text included."""

_KINDS = "biufcSUO"

# NumPy moved it between modules; a number knows its own.
_SCALAR = np.float64(0).__reduce__()[0]


def load_plain(file: IO[bytes]) -> Any:
    """The object that a pickle holds. Strings of Python 2 keep every byte (latin-1).

    Args:
        file: at the beginning of the pickle; it can be rewound.

    Raises:
        Exception: whatever a damaged pickle provokes; `pickle.UnpicklingError` for a refused class,
        `ValueError`
            for one that would take more than a small multiple of its size.
    """
    start = file.tell()
    check_pickle(file, most=_MOST_STEPS)
    file.seek(start)
    return _PlainUnpickler(file, encoding="latin1").load()


class _Type:
    """A type of elements, as a pickle tells it: a letter and a size, and then the order of bytes."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.dtype: np.dtype[Any] = np.dtype(str(name))
        self._check()

    def __setstate__(self, state: Any) -> None:
        _, order, inner, names, fields, size, *_ = state
        if inner is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError("it has arrays of records, which no data set needs")
        if self.dtype.kind in "SU" and size > 0:
            if size > _LARGEST_ELEMENT:
                raise pickle.UnpicklingError(f"it has arrays of {size:,} bytes an element")
            self.dtype = np.dtype(f"{self.dtype.kind}{size // (4 if self.dtype.kind == 'U' else 1)}")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)
        self._check()

    def _check(self) -> None:
        if self.dtype.kind not in _KINDS or self.dtype.itemsize > _LARGEST_ELEMENT:
            raise pickle.UnpicklingError(f"it has arrays of {self.dtype}, which no data set needs")


class _Array(np.ndarray[Any, Any]):
    """An array that is restored from checked parts."""

    def __setstate__(self, state: Any) -> None:
        version, shape, kind, by_columns, values = state
        dtype = kind.dtype
        count = math.prod(shape)
        if isinstance(values, str):
            values = values.encode("latin-1")
        if dtype.kind == "O":
            sound = isinstance(values, list) and len(values) == count
        else:
            sound = isinstance(values, bytes) and len(values) == count * dtype.itemsize
        if not sound or min(shape, default=0) < 0:
            raise pickle.UnpicklingError(f"it has an array of {count:,} elements and other values")
        restored: Any = (version, tuple(shape), dtype, bool(by_columns), values)
        super().__setstate__(restored)


class _ArrayClass:
    """Stands for the class of arrays, which makes none by itself."""

    def __new__(cls, *_: Any) -> _ArrayClass:
        raise pickle.UnpicklingError("it makes an array without values")


def _reconstruct(kind: Any, *_: Any) -> npt.NDArray[Any]:
    if kind is not _ArrayClass:
        raise pickle.UnpicklingError("it makes an array of an unknown kind")
    array: npt.NDArray[Any] = _Array((0,), np.int8)
    return array


def _scalar(kind: Any, value: Any) -> Any:
    if isinstance(value, str):
        value = value.encode("latin-1")
    if kind.dtype.kind == "O" or not isinstance(value, bytes) or len(value) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("it has a number of another size")
    return _SCALAR(kind.dtype, value)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few constructors of NumPy arrays."""
        known = {"dtype": _Type, "ndarray": _ArrayClass}
        if module.split(".")[0] == "numpy" and name in known:
            return known[name]
        made = {"_reconstruct": _reconstruct, "scalar": _scalar}
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in made:
            return made[name]
        raise pickle.UnpicklingError(f"it asks for {module[:80]}.{name[:80]}, which no data set needs")
