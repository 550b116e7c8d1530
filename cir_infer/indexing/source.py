"""What a source of images is, and what every source of ours has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from cir_infer.indexing.items import Broken, Item, Survey, Territory

__all__ = ["Named", "Source"]


class Source(Protocol):
    """A stream of images with what is known about them."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def survey(self) -> Survey:
        """What the last pass over the items met beside them; complete at its end."""
        ...

    @property
    def territory(self) -> Territory | None:
        """Which items of a gallery came from here, None if this cannot say what is no longer there."""
        ...

    def count(self) -> int | None:
        """How many items there will be, None where that is as costly as reading them."""
        ...

    def items(self) -> Iterator[Item | Broken]:
        """The items, in an order that does not change while the files do not."""
        ...


class Named:
    """A source's name, its survey, and no territory unless it says otherwise.

    Args:
        name: what it is called in messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._survey = Survey()

    @property
    def name(self) -> str:
        """See `Source`."""
        return self._name

    @property
    def survey(self) -> Survey:
        """See `Source`."""
        return self._survey

    @property
    def territory(self) -> Territory | None:
        """None: this does not speak for all that lies beside its images."""
        return None
