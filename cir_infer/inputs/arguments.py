"""Arguments of public calls, looked at before they are used: what does not fit is a `UsageError`.

NumPy's numbers count as numbers; booleans, floats and texts never do.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from cir_infer.errors import UsageError, shown

__all__ = [
    "checked_count",
    "checked_flag",
    "checked_list",
    "checked_number",
    "checked_real",
    "checked_seconds",
    "checked_word",
    "plain_path",
    "plain_text",
]

W = TypeVar("W", bound=str)

_MOST = (1 << 31) - 1
_FINITE = 1e308
_LONGEST = 10**9


def plain_text(text: str) -> str:
    """The text that an instance of a subclass of `str` is, whatever it makes of `str()`."""
    return str.__str__(text)


def plain_path(path: str | os.PathLike[str]) -> str:
    """A path as exactly `str`; `Path` and `str` make the name of an enum of a text enum.

    Raises:
        UsageError: an object of somebody's that is to say a path says none.
    """
    try:
        return plain_text(os.fsdecode(path))
    except Exception as error:
        raise UsageError(
            f"a path is an object of type {type(path).__name__} that does not say one ({shown(error, 80)}); "
            "expected text, or a pathlib.Path"
        ) from error


def checked_number(name: str, value: Any, least: int = 1, instead: str = "") -> int:
    """A whole number of at least `least`, as it was given, however large: the caller knows what is too much.

    Args:
        name: of the argument.
        value: what was passed.
        least: the smallest that fits.
        instead: what may be passed instead, e.g. ", or None".
    """
    if not isinstance(value, (bool, np.bool_)):
        try:
            number = operator.index(value)
        except TypeError:
            pass
        else:
            if number >= least:
                return number
    raise UsageError(f"{name} is {shown(value)}; expected a whole number of at least {least}{instead}")


def checked_count(name: str, value: Any) -> int:
    """How many at most, of things of which there are fewer than 2 ** 31: a greater number means all of them.

    Args:
        name: of the argument, e.g. "k".
        value: what was passed.
    """
    return min(checked_number(name, value), _MOST)


def checked_real(name: str, value: Any, expected: str) -> float:
    """A finite number, also NumPy's.

    Args:
        name: of the argument.
        value: what was passed.
        expected: what fits, for the message; the caller checks the range.
    """
    # A length of time is a whole number to NumPy.
    kinds = (int, float, np.integer, np.floating)
    if isinstance(value, kinds) and not isinstance(value, (bool, np.timedelta64)):
        # NumPy compares in the type of its own number, which may not hold the limit.
        number = float(value) if isinstance(value, np.floating) else value
        if abs(number) <= _FINITE:
            return float(number)
    raise UsageError(f"{name} is {shown(value)}; expected {expected}")


def checked_seconds(name: str, value: Any, least: float | None = 0, instead: str = "") -> float:
    """A length of time that clocks and waits of every system take.

    Args:
        name: of the argument.
        value: what was passed, in seconds.
        least: the shortest that fits; None for any above 0.
        instead: what may be passed instead, e.g. ", or None".
    """
    which = "above 0, and at most" if least is None else f"from {least:g} to"
    expected = f"seconds {which} {_LONGEST:,}{instead}"
    seconds = checked_real(name, value, expected)
    if not (seconds > 0 if least is None else seconds >= least) or seconds > _LONGEST:
        raise UsageError(f"{name} is {shown(value)}; expected {expected}")
    return seconds


def checked_flag(name: str, value: Any) -> bool:
    """True or False, and nothing that would merely count as one of them."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise UsageError(f"{name} is {shown(value)}; expected True or False")


def checked_word(name: str, value: Any, words: Collection[W]) -> W:
    """One of a few words."""
    for word in words:
        if isinstance(value, str) and value == word:
            return word
    raise UsageError(f"{name} is {shown(value)}; expected one of {', '.join(words)}")


def checked_list(name: str, value: Any, what: str) -> Iterable[Any]:
    """Several things: a list, a tuple, an array, a generator, but not one thing that can be iterated over.

    Args:
        name: of the argument, e.g. "images".
        value: what was passed.
        what: one element, e.g. "image".

    Returns:
        The value; generators are not begun.
    """
    single = isinstance(value, (str, bytes, bytearray, memoryview, os.PathLike))
    # A Pillow image, an open file.
    single = single or hasattr(value, "getbands") or hasattr(value, "read")
    scalar = isinstance(value, np.ndarray) and not value.ndim
    if single or scalar or isinstance(value, Mapping) or not isinstance(value, Iterable):
        found = f"one {what} ({shown(value)})" if single else shown(value)
        raise UsageError(f"{name} is {found}; expected a list of {what}s, [{what}] for one")
    return value
