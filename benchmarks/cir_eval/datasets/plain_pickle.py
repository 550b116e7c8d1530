"""Pickles of data sets, read without executing anything in them.

The unpickler can build plain values and NumPy arrays of numbers, and nothing else: a file that asks for
anything more is refused before anything happens.
"""

from __future__ import annotations

import pickle
from typing import IO, Any

import numpy as np

__all__ = ["load_plain"]

# NumPy moved these between modules; an array and a number know their own.
_CONSTRUCTORS = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}


def load_plain(file: IO[bytes]) -> Any:
    """The object that a pickle holds. Strings of Python 2 keep every byte (latin-1).

    Raises:
        Exception: whatever a damaged pickle provokes; `pickle.UnpicklingError` for a refused class.
    """
    return _PlainUnpickler(file, encoding="latin1").load()


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Look up one of the few constructors of NumPy arrays."""
        if module.split(".")[0] == "numpy" and name in ("dtype", "ndarray"):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in _CONSTRUCTORS:
            return _CONSTRUCTORS[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data set needs")
