"""Types of numeric flags: what is out of range is wrong usage, said by the parser with the flag's name."""

from __future__ import annotations

import argparse
import math

__all__ = ["at_least_one", "not_negative", "positive", "rate"]


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def not_negative(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text}; expected a number above 0")
    return value


def rate(text: str) -> float:
    """A finite number from 0."""
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text}; expected 0 or a positive number")
    return value


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text}; expected a whole number from {least}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}; expected a number")
    return value
