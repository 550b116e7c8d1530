"""What is gone from its source, and when so much of it is gone that it is not believed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cir_infer.errors import UsageError, shown
from cir_infer.inputs.locations import Location, are_gone

__all__ = ["NOT_ENCODED", "Origin", "PruneLimit", "Refused", "unbelievable", "under"]

NOT_ENCODED = "cannot be encoded anew"
"""What is the matter with items that another bundle would be without."""

_SHARE = 0.25
_NUMBER = 1000
_FEW = 2
_EMPTIED = 10


class Origin(NamedTuple):
    """An item of a gallery with where it came from."""

    id: str
    key: int
    source: str


class Refused(NamedTuple):
    """A removal that was not made.

    Attributes:
        source: whose items.
        gone: how many of them are gone.
        known: how many there were.
        reason: one line, with the remedy.
    """

    source: str
    gone: int
    known: int
    reason: str


@dataclass(frozen=True)
class PruneLimit:
    """How much one run may remove by itself, because it is gone.

    Without a number or share: a quarter of a source's items and 1,000 of them at most, never all of them
    and, of few items, no more than stay.

    Attributes:
        number: of items that may be removed, None where that is not said.
        share: of a source's items that may be removed, 0 to 1, None where that is not said.
    """

    number: int | None = None
    share: float | None = None

    @staticmethod
    def parse(text: str) -> PruneLimit:
        """A limit as it is written: a number, or a share such as `30%`.

        Raises:
            UsageError: neither.
        """
        digits, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
        try:
            value = float(digits) if percent else int(digits)
        except ValueError:
            value = -1
        if not 0 <= value <= (100 if percent else 1 << 62):
            raise UsageError(
                f"--prune-limit is {shown(text)}; expected a number of items, or a share of them such as 30%"
            )
        return PruneLimit(share=value / 100) if percent else PruneLimit(number=int(value))

    @property
    def insists(self) -> bool:
        """Whether somebody said how much may go."""
        return self.number is not None or self.share is not None

    def allows(self, gone: int, known: int) -> bool:
        """Whether so many of so many items may be removed."""
        if self.number is not None:
            return gone <= self.number
        if self.share is not None:
            return gone <= self.share * known
        return (
            gone < known and gone <= _NUMBER and (gone <= _SHARE * known or gone <= min(_FEW, known - gone))
        )


def unbelievable(
    source: str, gone: Sequence[Origin], known: int, limit: PruneLimit, fault: str = "are gone"
) -> Refused | None:
    """Why items that seem to be gone are not removed; None where they are.

    Args:
        source: whose items.
        gone: those that were not met.
        known: how many there were.
        limit: how much may be removed.
        fault: what is the matter with them.
    """
    if not gone:
        return None
    insist = f"if that is as it should be, pass --prune-limit {len(gone)}"
    what = f"{source}: {len(gone):,} of {known:,} items {fault}"
    if not limit.allows(len(gone), known):
        less = "more than the limit" if limit.insists else "too many to be removed without being told so"
        why = " (is a drive not mounted?)" if len(gone) == known else ""
        return Refused(source, len(gone), known, f"{what}, {less}{why}; they stay; {insist}")
    if limit.insists:
        return None
    folders = Counter(Location.parse(origin.source).folder for origin in gone)
    for folder, count in folders.items():
        if count > _EMPTIED and _is_empty(folder):
            return Refused(
                source,
                len(gone),
                known,
                f"{what}, {count:,} of them from {folder}, which is there and empty; is a drive not mounted? "
                f"They stay; {insist}",
            )
    return None


def under(paths: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path is one of these or lies below one; how many there are does not matter."""
    known = {path.rstrip(os.sep) for path in paths}

    def is_under(path: str) -> bool:
        while path not in known:
            parent = os.path.dirname(path)  # noqa: PTH120
            if parent == path or not parent:
                return False
            path = parent
        return True

    return is_under


def seem_gone(items: Sequence[Origin]) -> list[Origin]:
    """Of items that were not met those whose image is gone: its file is, or its member of a file."""
    locations = [Location.parse(item.source) for item in items]
    files = are_gone(location.path for location in locations if location.whole)
    gone = [not location.whole or next(files) for location in locations]
    return [item for item, is_so in zip(items, gone, strict=True) if is_so]


def _is_empty(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError:
        return False
