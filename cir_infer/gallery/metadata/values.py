"""Single values of metadata and filters, from Python and NumPy, as JSON and SQLite have them.

The same rules hold for what is stored and for what a filter compares with, so a value that was taken is
found by itself. Numbers stay exact or are refused. Dates and times become ISO 8601 text whose order as
text is their order in time:

    2024-05-17                              a date: the beginning of its day
    2024-05-17T09:30:00                     a date and a time without a zone
    2024-05-17T09:30:00.250000+00:00        one with a zone: always in UTC; six digits, or nine, of a second
    09:30:00                                a time of day
"""

from __future__ import annotations

import re
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np

from cir_infer.errors import shown
from cir_infer.inputs.arguments import plain_text

__all__ = [
    "BEYOND",
    "EXPECTED",
    "Scalar",
    "UnfitError",
    "decimal_number",
    "is_missing",
    "moment",
    "number_of_text",
    "plain_text",
    "scalar",
    "storable",
]

Scalar = str | int | float
"""A value that a filter can compare; truth values are the integers 0 and 1."""

EXPECTED = "expected text, a number, true, false, null, a date or a time"
BEYOND: int = 10**400
"""Stands for every number that is larger than all that can be stored."""

_MAX_NUMBER = 1000
_NUMBER = re.compile(r"([+-]?)([0-9]*\.?[0-9]*)(?:[eE]([+-]?[0-9]+))?")
_STAMP = re.compile(
    r"(?:([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt])?([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,18}))?)?"
    r"(?:([Zz])|([+-])([0-9]{2}):([0-9]{2}))?"
)
_STRANGE = ("NAType", "NaTType")  # pandas' own values for what is missing


class UnfitError(ValueError):
    """A value that can be neither stored nor compared; says what was found and expected."""


def scalar(value: Any) -> str | int | float | bool | None:
    """A value as JSON has it: exactly `str`, `int`, `float`, `bool` or None.

    Subclasses (text and number enums, NumPy scalars) become what they are made of. Whole numbers may be
    of any size, floats may be infinite; what is missing (see `is_missing`) is no value.

    Raises:
        UnfitError: it is of another type, or cannot be held exactly.
    """
    kind = type(value)
    if kind is str:
        return _storable_text(value)
    if kind in (int, bool, float) or value is None:
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        return _storable_text(plain_text(value))
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.timedelta64 | timedelta):
        raise UnfitError("is a length of time; expected a number of seconds or days")
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return _double(value)
    if isinstance(value, Decimal):
        return decimal_number(value)
    if isinstance(value, np.datetime64):
        return _numpy_moment(value)
    if isinstance(value, datetime | date | time):
        return moment(value)
    if isinstance(value, bytes | bytearray | memoryview):
        raise UnfitError(f"is bytes ({shown(value, 40)}); expected text, so decode them")
    raise UnfitError(f"is {shown(value, 60)}, of type {kind.__name__}; {EXPECTED}")


def is_missing(value: Any) -> bool:
    """Whether a value says that there is none: NaN, NaT, pandas' NA, and what NumPy has masked."""
    kind = type(value)
    if kind in (str, int, bool):
        return False
    if isinstance(value, float | np.floating):
        return bool(value != value)
    if isinstance(value, np.datetime64 | np.timedelta64):
        return bool(np.isnat(value))
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, np.ndarray):
        return kind is type(np.ma.masked)  # which is imported for arrays only
    return kind.__name__ in _STRANGE and kind.__module__.partition(".")[0] == "pandas"


def storable(text: str) -> bool:
    """Whether UTF-8 can carry it; lone surrogates, as from odd file names, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- numbers


def number_of_text(text: str) -> int | float:
    """The number that decimal digits say: `10`, `-3.50`, `+1e6`, `007`.

    Raises:
        UnfitError: it is none, is very long, or says more digits than a 64-bit float holds.
    """
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_NUMBER else None
    if match is None or not any(digit.isdigit() for digit in match[2]):
        raise UnfitError(
            f"is {shown(text, 60)}; expected a number of up to {_MAX_NUMBER:,} characters, or quoted text"
        )
    exponent = max(-(10**6), min(10**6, int(match[3] or 0)))
    return decimal_number(Decimal(f"{match[1]}{match[2]}e{exponent}"))


def decimal_number(value: Decimal) -> int | float:
    """A decimal number as the whole number that it is, or as the float whose digits it is.

    Digits with a point or an exponent are those of a float first, as Python and JSON read and write
    them: 1e23 is the float next to 10**23.

    Raises:
        UnfitError: no float has these digits; the nearest says others.
    """
    if not value.is_finite():
        return float(value)
    if not value:
        return 0
    if value.adjusted() > 400:
        return -BEYOND if value.is_signed() else BEYOND
    _, digits, exponent = value.as_tuple()
    nearest = float(value)
    whole = value.adjusted() >= 0 and value == value.to_integral_value()
    if whole and (exponent == 0 or nearest == value):
        return int(value)
    # Both: of a float just between two decimals, 2 ** -24 for one, `repr` takes one and formatting the other.
    if value == Decimal(repr(nearest)):
        return nearest
    if len(digits) <= _MAX_NUMBER and Decimal(f"{nearest:.{len(digits) - 1}e}") == value:
        return nearest
    if whole:
        return int(value)
    raise UnfitError(
        f"is {shown(str(value), 60)}, and the nearest 64-bit float {nearest!r} says other digits; "
        "expected fewer digits, or text"
    )


def _double(value: np.floating[Any]) -> float:
    number = float(value)
    if type(value)(number) != value:
        raise UnfitError(
            f"is {value!s} in {value.dtype}, which no 64-bit float holds; expected a 64-bit float"
        )
    return number


def _storable_text(text: str) -> str:
    if not storable(text):
        raise UnfitError(f"is text that is not valid Unicode ({shown(text, 60)})")
    return text


# ---- dates and times


def moment(value: datetime | date | time | str) -> str:
    """A date, a time or both as text, see above.

    Args:
        value: an object, or text such as `2024-05-17T09:30`, `2024-05-17T09:30:15.5+02:00`, `09:30`.

    Raises:
        UnfitError: there is no such time, a time of day has a zone, or UTC leaves the years 1 to 9999.
    """
    if isinstance(value, str):
        return _moment_of_text(value)
    if isinstance(value, time):
        if value.tzinfo is not None:
            raise UnfitError("is a time of day with a time zone, which has no order; expected one without")
        plain = time(value.hour, value.minute, value.second, value.microsecond)
        return plain.isoformat()
    if not isinstance(value, datetime):
        return date(value.year, value.month, value.day).isoformat()
    try:
        aware = value.utcoffset() is not None
        utc = value.astimezone(timezone.utc) if aware else value
    except Exception as error:  # also what a zone of somebody else's raises
        raise UnfitError(f"is a time that cannot be given in UTC ({shown(error, 80)})") from None
    fraction = f"{utc.microsecond:06d}{getattr(value, 'nanosecond', 0):03d}"
    whole = datetime(utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second)
    return whole.isoformat() + _fraction(fraction) + ("+00:00" if aware else "")


def _moment_of_text(text: str) -> str:
    match = _STAMP.fullmatch(text)
    if match is None:
        raise UnfitError(
            f"is {shown(text, 60)}; expected a time such as 2024-05-17T09:30:00, or text in quotes"
        )
    day, clock, seconds, fraction, zulu, sign, hours, minutes = match.groups()
    aware = bool(zulu or sign)
    try:
        whole = datetime.fromisoformat(f"{day or '2000-01-01'}T{clock}:{seconds or '00'}")
        if sign:
            if not (int(hours) < 24 and int(minutes) < 60):
                raise ValueError("no such time zone")
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            whole = whole - offset if sign == "+" else whole + offset
    except (ValueError, OverflowError) as error:
        raise UnfitError(f"is {shown(text, 60)}, which is no time ({error}); put text into quotes") from None
    if day is None:
        if aware:
            raise UnfitError(f"is {shown(text, 60)}, a time of day with a time zone, which has no order")
        return whole.time().isoformat() + _fraction(fraction or "")
    return whole.isoformat() + _fraction(fraction or "") + ("+00:00" if aware else "")


def _numpy_moment(value: np.datetime64) -> str:
    text = str(np.datetime_as_string(value))
    if not re.match(r"[0-9]{4}(?![0-9])", text):
        raise UnfitError(f"is the time {shown(text, 60)}; expected a year of 0 to 9999")
    if np.datetime_data(value.dtype)[0] in ("Y", "M", "W", "D"):
        return str(np.datetime_as_string(value.astype("datetime64[D]")))
    day, _, clock = text.partition("T")
    clock, _, fraction = clock.partition(".")
    return f"{day}T{clock}{':00' * (2 - clock.count(':'))}{_fraction(fraction)}"


def _fraction(digits: str) -> str:
    """Digits of a second as none, six, nine, ... of them: one way to write each, in the order of time."""
    digits = digits.rstrip("0")
    if not digits:
        return ""
    return "." + digits.ljust(max(6, -(-len(digits) // 3) * 3), "0")
