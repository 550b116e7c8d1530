"""What an indexing run did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cir_infer.indexing.items import Broken
from cir_infer.indexing.pruning import Refused

__all__ = ["Report"]


@dataclass
class Report:
    """What a run did.

    Attributes:
        added: items that are new.
        replaced: items whose image or metadata had changed.
        moved: items whose image was found again elsewhere; their rows were taken over.
        unchanged: items that were up to date.
        removed: items whose image is gone.
        encoded: how many images went through the encoder into the gallery.
        broken: items that could not be indexed; a version indexed earlier stays.
        given_up: id and stamp of those of them that are in vain to try again, as long as they are the same.
        passed_over: id and stamp of items that were known to be broken, and not tried again.
        refused: removals that were too much to be believed, and were not made.
        left_out: entries of the sources that were no items, by kind.
        seconds: how long it took.
        encoding_seconds: how much of that the encoder was at work.
    """

    added: int = 0
    replaced: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    encoded: int = 0
    broken: list[Broken] = field(default_factory=list)
    given_up: list[tuple[str, str]] = field(default_factory=list)
    passed_over: list[tuple[str, str]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    encoding_seconds: float = 0.0

    @property
    def changed(self) -> bool:
        """Whether the gallery is another one than before."""
        return bool(self.added or self.replaced or self.moved or self.removed)

    @property
    def ok(self) -> bool:
        """Whether everything was done."""
        return not self.broken and not self.refused

    @property
    def rate(self) -> float:
        """Images encoded and stored a second."""
        return self.encoded / self.seconds if self.seconds else 0.0

    def count(self, other: Report) -> None:
        """Add the numbers of another run, without what is listed by name and without its seconds."""
        for name in ("added", "replaced", "moved", "unchanged", "removed", "encoded", "encoding_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "added": self.added,
            "replaced": self.replaced,
            "moved": self.moved,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "broken": len(self.broken),
            "refused": [refused._asdict() for refused in self.refused],
            "left_out": dict(self.left_out.most_common()),
            "encoded": self.encoded,
            "seconds": round(self.seconds, 3),
            "encoding_seconds": round(self.encoding_seconds, 3),
            "images_per_second": round(self.rate, 2),
        }
