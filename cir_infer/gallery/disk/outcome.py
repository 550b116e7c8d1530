"""What an exception says about a change that it came too late to stop."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["forget_durable", "tell_durable"]


def tell_durable(error: BaseException, what: str) -> None:
    """Note on an exception, an interrupt for instance, that something is done and stays done.

    Args:
        error: gets an attribute `durable`, which is True, and a note that a traceback shows from Python
            3.11 on.
        what: the note.
    """
    with suppress(AttributeError, TypeError):  # a type without attributes
        error.durable = True  # type: ignore[attr-defined]
        notes = getattr(error, "__notes__", [])
        if what not in notes:
            error.__notes__ = [*notes, what]  # type: ignore[attr-defined]


def forget_durable(error: BaseException) -> None:
    """Take back what was told of a draft, which nobody asked for."""
    with suppress(AttributeError):
        error.durable = False  # type: ignore[attr-defined]
        error.__notes__ = []  # type: ignore[attr-defined]
