"""Numbers of a model that files of others state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cir_infer.errors import CheckpointError, shown

__all__ = ["LEAST_STD", "channels", "whole"]

LEAST_STD = 1e-6
"""Of channels in 0..1. Less would make images infinite in float32."""

_MOST = 1e6


def whole(table: Mapping[str, Any], key: str, default: int | None, where: str) -> int:
    """A size of a configuration.

    Raises:
        CheckpointError: it is missing, or no whole number from 1 to 2 ** 24.
    """
    value = table.get(key, default)
    if type(value) is not int or not 1 <= value <= 1 << 24:
        raise CheckpointError(f"{where}: {key} is {shown(value)}; expected a whole number from 1 up")
    return value


def channels(values: Any, name: str, where: str, least: float = -_MOST) -> tuple[float, ...]:
    """Three numbers, one a channel.

    Args:
        values: whatever the file says.
        name: of the field, for messages.
        where: the file, for messages.
        least: of each number.

    Raises:
        CheckpointError: they are something else, not finite or too small.
    """
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(type(value) in (int, float) and least <= value <= _MOST for value in values)
    ):
        above = f" from {least:g} up" if least > 0 else ""
        raise CheckpointError(f"{where}: {name} is {shown(values)}; expected three numbers{above}")
    return tuple(float(value) for value in values)
