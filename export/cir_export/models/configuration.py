"""Reads a part of a model's configuration into a dataclass, refusing what it does not know."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cir_infer.errors import UsageError, shown

__all__ = ["parse"]

_MOST = (1 << 31) - 1
"""Of whole numbers: no size is beyond it, and PyTorch's generators take no seed far beyond."""

_Settings = TypeVar("_Settings")


def parse(kind: type[_Settings], values: Any, where: str) -> _Settings:
    """Builds the dataclass `kind` from a mapping of plain values.

    Args:
        kind: a dataclass of int, float, str, bool and tuples of them.
        values: the mapping, e.g. a table of a TOML file.
        where: how to call it in messages, e.g. "image".

    Raises:
        UsageError: not a mapping, an unknown or missing key, a value of another type, NaN or infinity, or a
            whole number that is negative or beyond 2 ** 31 - 1.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: {shown(values)} is not a table; expected one of keys and values")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(f"{where}: unknown key {shown(unknown[0])}; expected {', '.join(fields)}")
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UsageError(f"{where}: {shown(name)} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        if not isinstance(value, list | tuple) or not value:
            raise UsageError(f"{where}: {shown(value)} is not a list of {item.__name__}")
        return tuple(_value(item, one, where) for one in value)
    if type(value) is not hint and not (hint is float and type(value) is int):
        raise UsageError(f"{where}: {shown(value)} is not of type {hint.__name__}")
    if hint is float:
        # TOML has NaN and infinities, and both it and JSON have whole numbers of any length.
        if not abs(value) <= sys.float_info.max:
            raise UsageError(f"{where}: {shown(value)} is no finite number")
        return float(value)
    if hint is int and not 0 <= value <= _MOST:
        what = "is negative" if value < 0 else f"is too large; expected at most {_MOST:,}"
        raise UsageError(f"{where}: {shown(value)} {what}")
    return value
