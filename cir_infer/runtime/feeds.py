"""What is fed to a graph, checked against what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from cir_infer.errors import UsageError, shown
from cir_infer.runtime.graph import Tensor

__all__ = ["check_feed"]


def check_feed(name: str, value: Any, tensor: Tensor) -> None:
    """Raise `UsageError` unless a value is an array of the type and shape of an input.

    Args:
        name: what the value is called in the error.
        value: anything.
        tensor: the input.
    """
    if isinstance(value, np.ndarray) and value.dtype == tensor.dtype and _fits(value.shape, tensor.shape):
        return
    wanted = ", ".join("n" if length is None else str(length) for length in tensor.shape)
    found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else shown(value)
    raise UsageError(f"{name} is {found}; expected {tensor.dtype} ({wanted})")


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        length is None or length == found for found, length in zip(shape, wanted, strict=True)
    )
