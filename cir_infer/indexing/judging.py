"""What is to be done about each image that a source shows: encode it, take over its row, or leave it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.gallery import Held
from cir_infer.indexing.contents import Contents, digests
from cir_infer.indexing.items import Item, Stamp, Territory
from cir_infer.indexing.pruning import Origin
from cir_infer.inputs.locations import Location, are_gone, is_gone, same_file

__all__ = ["Judge", "Outcome", "Verdict", "again"]

Outcome = Literal["added", "replaced", "moved", "unchanged"]


class Verdict(NamedTuple):
    """What is to be done about an item.

    Attributes:
        action: "encode" it; "reuse" the row of the same image; "keep" what the gallery has; "skip" it, it is
            the same image again; or it is "broken".
        outcome: what becomes of it, where it is encoded or reused.
        row: float32 (D,), to be reused.
        digest: of its bytes, as far as it is known.
        reason: why it is skipped or broken.
        told: the metadata of the item whose place it takes, where its source says of it what it said before:
            what others have told the gallery of it stays.
    """

    action: Literal["encode", "reuse", "keep", "skip", "broken"]
    outcome: Outcome = "added"
    row: npt.NDArray[np.float32] | None = None
    digest: str | None = None
    reason: str = ""
    told: Mapping[str, Any] | None = None


COPIES = "copies of images that are indexed under the same id"
TWICE = "named twice"


class Judge:
    """Compares items with what the gallery held when a run began.

    Attributes:
        met: by key, which of the items that were held then have been come across.
        followed: by key, where the image of an item was found again under another id; it is gone where it
        was.
        moves: how folders were renamed, as (before, now), with how many images were followed so under their
        own ids.

    Args:
        gallery: as it is before the run.
        replace_taken: whether an id that belongs to another file goes to the one that comes now.
    """

    def __init__(self, gallery: Gallery, replace_taken: bool) -> None:
        self._gallery = gallery
        self._replace_taken = replace_taken
        self.started_at = gallery.next_key
        self.met = np.zeros(self.started_at, np.bool_)
        self.followed: dict[int, str] = {}
        self.moves: Counter[tuple[str, str]] = Counter()
        # Rows are only known to be this engine's where the gallery names the bundle.
        self._follows = gallery.fingerprint is not None and len(gallery) > 0
        self._contents: Contents | None = None
        self._gone: dict[str, bool] = {}

    @property
    def contents(self) -> Contents:
        """What the gallery held, by content."""
        if self._contents is None:
            self._contents = Contents(self._gallery)
        return self._contents

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[Item, Verdict]]:
        """What is to be done about each of some items with different ids."""
        held = self._gallery.held([item.id for item in items])
        looked_into = digests([item for item in items if self._is_worth_a_look(item, held.get(item.id))])
        self._gone = _gone_from_stores(items, held)
        for item in items:
            known, digest = held.get(item.id), looked_into.get(item.id)
            if known is None:
                yield item, self._new(item, digest)
            elif known.key >= self.started_at or self.met[known.key]:
                stamp = Stamp.parse(known.stamp)
                yield item, again(item, Location.parse(known.source or ""), stamp.version if stamp else None)
            else:
                yield item, self._known(item, known, digest)

    def are_elsewhere(
        self, gone: Sequence[Origin], known: Sequence[Origin], territory: Territory | None
    ) -> list[bool]:
        """Whether the image of each of these items was met in this run under another id of the same source.

        Args:
            gone: items that were not met.
            known: all items of the source.
            territory: of the source.
        """
        met = np.zeros(self._gallery.next_key, np.bool_)
        here = np.array([origin.key for origin in known], np.int64)
        before = here[here < self.started_at]
        met[before] = self.met[before]
        met[here[here >= self.started_at]] = True  # this run, the only writer, has committed them
        elsewhere = self.contents.are_elsewhere([origin.key for origin in gone], met)
        roots = territory.roots if territory else ()
        return [
            found or self.followed.get(origin.key, "").startswith(roots)
            for origin, found in zip(gone, elsewhere, strict=True)
        ]

    def _is_worth_a_look(self, item: Item, held: Held | None) -> bool:
        if not self._follows:
            return False
        if held is not None and _is_as_it_was(held, item):
            return False
        if item.location.remote:  # to look would be to fetch it, and to encode it is to fetch it once
            return False
        return self.contents.may_hold(item.size)

    # ---- ids that are new

    def _new(self, item: Item, digest: str | None) -> Verdict:
        if digest is None:
            return Verdict("encode")
        keys = self.contents.keys(digest)
        stamps = self._gallery.stamps_of(keys)
        row: npt.NDArray[np.float32] | None = None
        told: Mapping[str, Any] | None = None
        outcome: Outcome = "added"
        for key, _, source in self._gallery.sources_of(keys):
            known = Stamp.parse(stamps.get(key))
            if known is None or known.digest != digest or (found := self._row(key)) is None:
                continue
            row = found if row is None else row
            if key < self.started_at and not self.met[key] and source and _moved(source, item):
                self.followed[key] = str(item.location)
                told = self._told(key, known, item) if outcome == "added" else told
                outcome = "moved"
        if row is None:
            return Verdict("encode", digest=digest)
        return Verdict("reuse", outcome, row, digest, told=told)

    # ---- ids that the gallery has

    def _known(self, item: Item, held: Held, digest: str | None) -> Verdict:
        stamp = Stamp.parse(held.stamp)
        if held.source is None or stamp is None:
            return self._without_stamp(item, held)
        place = Location.parse(held.source)
        same_version = stamp.version == item.stamp
        same_content = digest is not None and digest == stamp.digest
        if same_file(place, item.location):
            self.met[held.key] = True
            if same_version and held.source == str(item.location):
                return Verdict("keep")
            if same_content or stamp.same_image(item.stamp):
                outcome: Outcome = "unchanged" if stamp.same_metadata(item.stamp) else "replaced"
                outcome = "moved" if same_version else outcome
                return self._taken_over(held, outcome, digest or stamp.digest, item)
            return Verdict("encode", "replaced", digest=digest, told=self._told(held.key, stamp, item))
        gone = self._gone[place.path] if place.path in self._gone else is_gone(place.path)
        same_content = same_content or (same_version and (gone or stamp.digest is None))
        if same_content and gone:
            self.met[held.key] = True
            self.moves[_renamed(held.source, str(item.location))] += 1
            return self._taken_over(held, "moved", digest or stamp.digest, item)
        if same_content and stamp.same_metadata(item.stamp):
            return Verdict("skip", reason=COPIES)
        old_format = stamp.digest is None and stamp.author is None
        if item.author is not None and (item.author == stamp.author or old_format):
            self.met[held.key] = True
            return Verdict("encode", "replaced", digest=digest, told=self._told(held.key, stamp, item))
        if self._replace_taken:
            self.met[held.key] = True
            return Verdict("encode", "replaced", digest=digest)
        return Verdict("broken", reason=_taken(item, place, gone))

    def _without_stamp(self, item: Item, held: Held) -> Verdict:
        """An item that a program put there: a vector without an image, or an image that it named."""
        place = None if held.source is None else Location.parse(held.source)
        same = place is None or same_file(place, item.location)
        if place is not None and not same and not self._replace_taken:
            return Verdict("broken", reason=_taken(item, place, is_gone(place.path)))
        self.met[held.key] = True
        return Verdict("encode", "replaced", told=self._told(held.key, None, item) if same else None)

    def _taken_over(self, held: Held, outcome: Outcome, digest: str | None, item: Item) -> Verdict:
        told = self._told(held.key, Stamp.parse(held.stamp), item)
        row = self._row(held.key) if self._follows else None
        if row is None:
            return Verdict("encode", "replaced", digest=digest, told=told)
        return Verdict("reuse", outcome, row, digest, told=told)

    def _told(self, key: int, stamp: Stamp | None, item: Item) -> Mapping[str, Any] | None:
        """What the gallery was told of an item, None where its source says something else of it by now."""
        if item.metadata if stamp is None else not stamp.same_metadata(item.stamp):
            return None
        snapshot = self._gallery.snapshot()
        return snapshot.metadata(snapshot.rows_of(np.array([key], np.int64)))[0]

    def _row(self, key: int) -> npt.NDArray[np.float32] | None:
        snapshot = self._gallery.snapshot()
        at = int(snapshot.rows_of(np.array([key], np.int64))[0])
        return None if at < 0 else snapshot.vector(at)


def _gone_from_stores(items: Sequence[Item], held: Mapping[str, Held]) -> dict[str, bool]:
    """Of the objects that had the ids of some items, and are not these, whether each was removed."""
    known = [(item, held[item.id].source) for item in items if item.id in held]
    places = [(item, Location.parse(source)) for item, source in known if source is not None]
    paths = {place.path for item, place in places if place.remote and not same_file(place, item.location)}
    return dict(zip(paths, are_gone(paths), strict=True))


def again(item: Item, earlier: Location, version: str | None) -> Verdict:
    """An item whose id was met before in this run: the same image once more, or another one."""
    if version == item.stamp and same_file(earlier, item.location):
        return Verdict("skip", reason=TWICE)
    reason = (
        f"id {shown(item.id)} came before in this run, from {_place(earlier)}; give each image an id of its "
        "own, or put a name before the ids of one of the sources (NAME=SOURCE)"
    )
    return Verdict("broken", reason=reason)


def _is_as_it_was(held: Held, item: Item) -> bool:
    """Whether the stamp alone says that an item's image is the one that is held."""
    stamp = Stamp.parse(held.stamp)
    if stamp is None or not stamp.same_image(item.stamp):
        return False
    same_place = held.source is not None and same_file(Location.parse(held.source), item.location)
    return stamp.version == item.stamp or same_place


def _renamed(before: str, now: str) -> tuple[str, str]:
    """What of two places differs, at their beginnings: the folder that was renamed, before and now."""
    old, new = before.split("/"), now.split("/")
    while old and new and old[-1] == new[-1]:
        del old[-1], new[-1]
    return "/".join(old), "/".join(new)


def _moved(source: str, item: Item) -> bool:
    """Whether an item's image is no longer where it was, because it is here now."""
    place = Location.parse(source)
    if is_gone(place.path):
        return True
    if not place.whole:
        return False
    # A file system that takes no notice of capitals shows a renamed file under its old name too.
    with suppress(OSError, ValueError):
        here = item.location
        renamed = place.path != here.path and place.path.lower() == here.path.lower()
        return renamed and here.whole and same_file(place, here) and os.lstat(place.path).st_nlink == 1
    return False


def _taken(item: Item, place: Location, gone: bool) -> str:
    there = "which cannot be found now" if gone else "which is still there"
    return (
        f"id {shown(item.id)} is that of another image, {_place(place)}, {there}; put a name before the ids "
        "of this source (NAME=SOURCE, or --prefix NAME), or pass --replace to put this image in its place"
    )


def _place(location: Location) -> str:
    return shown(Path(str(location)))
