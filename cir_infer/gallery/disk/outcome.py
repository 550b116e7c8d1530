"""What an exception says about a change that it came too late to stop."""

from __future__ import annotations

from contextlib import suppress

__all__ = ["forget_durable", "tell_durable"]


class _Told(str):
    """A note of ours, among those of others."""

    __slots__ = ()


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
            error.__notes__ = [*notes, _Told(what)]  # type: ignore[attr-defined]


def forget_durable(error: BaseException) -> None:
    """Take back what was told of a draft, which nobody asked for. Notes of others stay."""
    with suppress(AttributeError, TypeError):
        del error.durable  # type: ignore[attr-defined]
        notes = error.__notes__  # type: ignore[attr-defined]
        error.__notes__ = [note for note in notes if not isinstance(note, _Told)]  # type: ignore[attr-defined]
