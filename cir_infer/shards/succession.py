"""Other shards in place of those of a sharded gallery: made beside them, then changed over at once.

    shop.shards/
        shards.json             the shards that answer
        0000.gallery ...
        next.json               the shards that are being made
        s2-0000.gallery ...

The old shards answer and are written to while the new ones are filled, in passes that take over what has
changed meanwhile. The last pass is made as the one writer of every old shard. Then these refuse every later
change, and `next.json` becomes `shards.json`, which is the one switch for all shards. Whoever has the old
ones open goes on reading them until they are removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.arguments import checked_path
from cir_infer.gallery.disk import files
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.shards.layout import ShardedGallery, checked_shards, made, names_of, shard_of, spread
from cir_infer.shards.listing import FILE, Listing, read_listing

__all__ = ["Fill", "Gone", "rebalance", "remove_old", "succeed"]

NEXT = "next.json"
_LOCK = "succession.lock"
_PASSES, _FEW = 8, 256
"""So many passes at most, until one finds no more than so many changes; what is left waits for the last."""
_WAIT = 600.0
_SET = re.compile(r"s(\d{1,9})-\d{4}\.gallery")

Fill: TypeAlias = Callable[[Sequence[Gallery], Sequence[Gallery]], int]
"""Brings new shards in step with old ones; returns how many items it looked at. It is called repeatedly."""


class Gone:
    """Which items have left some galleries from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[int, Snapshot] = {}

    def since(self, number: int, gallery: Gallery) -> tuple[Snapshot, int, list[str]]:
        """A look at one of them.

        Returns:
            The snapshot, the key with which begins what it has more than at the look before (0 at the first),
            and the ids that it had then and has no more.
        """
        before, now = self._before.get(number), gallery.snapshot()
        self._before[number] = now
        if before is None:
            return now, 0, []
        old, new = (one.keys(one.live_rows()) for one in (before, now))
        gone = np.setdiff1d(old, new, assume_unique=True)
        ids = before.ids(before.rows_of(gone)) if len(gone) else []
        held = gallery.held(ids)
        return now, int(old.max(initial=-1)) + 1, [item for item in ids if item not in held]


def succeed(
    path: str | Path,
    wanted: Listing,
    dtype: str,
    fill: Fill,
    *,
    resume: bool = False,
    missing: Callable[[], int] = lambda: 0,
) -> list[str]:
    """Let other shards take the place of those of a sharded gallery.

    Args:
        path: its folder.
        wanted: what the new ones are; their names are chosen here, and how many there are is kept.
        dtype: of their rows.
        fill: makes their contents.
        resume: go on with shards that a run before has begun, where they are of the same kind.
        missing: how many items `fill` has left out and said so.

    Returns:
        The names of the old shards, for `remove_old`.

    Raises:
        GalleryError: somebody else does the same, the new shards do not hold what the old ones do, the disk
            is full or fails. Then the old ones are in their place.
    """
    folder = checked_path("path", path)
    with _alone(folder), ShardedGallery(folder, wait=_WAIT) as old, ExitStack() as opened:
        for shard in old.shards:
            shard.retire(False)  # of a run that was killed before its switch
        new = _begun(folder, old.listing, wanted, dtype, resume, opened)
        for _ in range(_PASSES):
            if fill(old.shards, new) <= _FEW:
                break
        with ExitStack() as held:
            for shard in old.shards:
                held.enter_context(shard.writing())
            fill(old.shards, new)
            counts = [sum(map(len, shards)) for shards in (old.shards, new)]
            if counts[0] != counts[1] + missing():
                raise GalleryError(
                    f"{folder}: the new shards hold {counts[1]:,} items and the old {counts[0]:,}. These "
                    "stay; an id may be in two of them"
                )
            for shard in old.shards:
                shard.retire()
            (folder / NEXT).replace(folder / FILE)
            files.sync_folder(folder)
        return list(old.listing.shards)


def rebalance(path: str | Path, into: int) -> list[str]:
    """Change the number of shards while they answer and are written to.

    Ids, metadata, sources and stamps are kept, rows too; int8 rows take the way of an export.

    Args:
        path: the folder of the sharded gallery.
        into: how many it will have, 1 to 256.

    Returns:
        See `succeed`.

    Raises:
        GalleryError: see `succeed`.
        UsageError: no such number.
    """
    count = checked_shards(into)
    with ShardedGallery(path, read_only=True) as gallery:
        listing, dtype = gallery.listing, gallery.shards[0].dtype
    gone = Gone()

    def fill(old: Sequence[Gallery], new: Sequence[Gallery]) -> int:
        changes = 0
        for number, gallery in enumerate(old):
            snapshot, since, left = gone.since(number, gallery)
            for place, shard in enumerate(new):
                shard.remove([item for item in left if shard_of(item, len(new)) == place], missing="skip")
            changes += spread(new, gallery, snapshot, since, replacing=True) + len(left)
        return changes

    return succeed(path, listing._replace(shards=("",) * count), dtype, fill)


def remove_old(path: str | Path, names: Sequence[str]) -> None:
    """Remove galleries that are no shards any more. Whoever has them open is told so.

    Raises:
        GalleryError: one is a shard, or the disk fails.
    """
    folder = checked_path("path", path)
    current = read_listing(folder).shards
    for name in names:
        if name in current or "/" in name:
            raise GalleryError(f"{folder / name}: is a shard of {folder}; it stays")
        with files.told_as_gallery_error("removing an old shard", folder / name):
            shutil.rmtree(folder / name, ignore_errors=False)


def _begun(
    folder: Path, old: Listing, wanted: Listing, dtype: str, resume: bool, opened: ExitStack
) -> list[Gallery]:
    """The new shards: those that a run before has begun, or empty ones."""
    if (folder / NEXT).exists():
        found = read_listing(folder, NEXT)
        if resume and found._replace(shards=()) == wanted._replace(shards=()):
            shards = [opened.enter_context(Gallery.open(folder / name, wait=_WAIT)) for name in found.shards]
            if len(shards) == len(wanted.shards) and all(one.dtype == dtype for one in shards):
                return shards
        (folder / NEXT).unlink()
    numbers = [0]
    for entry in folder.iterdir():
        match = _SET.fullmatch(entry.name)
        if match:
            numbers.append(int(match[1]))
            if entry.name not in old.shards and not (folder / NEXT).exists():
                shutil.rmtree(entry)  # begun and given up, or replaced and not removed
    prefix = f"s{max(numbers) + 1}-"
    listing = wanted._replace(shards=names_of(len(wanted.shards), prefix))
    shards = made(folder, listing, dtype, opened)
    listing.write(folder, NEXT)
    return shards


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only one who changes over a sharded gallery."""
    read_listing(folder)
    with (
        files.told_as_gallery_error("locking", folder / _LOCK),
        files.open_file(folder / _LOCK, os.O_RDWR | os.O_CREAT) as file,
    ):
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GalleryError(f"{folder}: somebody else changes its shards over; wait for that") from error
        yield
