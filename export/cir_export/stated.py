"""Texts that somebody states of a model, and that its bundle holds."""

from __future__ import annotations

__all__ = ["LONGEST", "is_stated"]

LONGEST = 1000
"""Characters of such a text."""


def is_stated(value: object) -> bool:
    """Whether it is a text that a manifest holds: JSON in UTF-8 has no half of a character."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
