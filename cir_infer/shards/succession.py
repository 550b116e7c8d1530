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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.arguments import checked_path
from cir_infer.gallery.disk import drafts, files
from cir_infer.gallery.disk.folder import is_retired
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.inputs.arguments import checked_list
from cir_infer.processes.folders import sync_folder
from cir_infer.processes.locked_files import locked_file
from cir_infer.shards.layout import ShardedGallery, checked_shards, made, names_of, shard_of, spread
from cir_infer.shards.listing import FILE, NAME, Listing, read_listing

__all__ = ["Fill", "Gone", "rebalance", "remove_old", "succeed"]

NEXT = "next.json"
_LOCK = "succession.lock"
_PASSES, _FEW = 8, 256
"""So many passes at most, until one finds no more than so many changes; what is left waits for the last."""
_WAIT = 600.0
_SET = re.compile(r"(?:s(\d{1,9})-)?\d{4}\.gallery(\.removed)?")
_DRAFT = re.compile(r"\.(s\d{1,9}-\d{4}\.gallery)\..*")
_REMOVED = ".removed"

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
    known: Listing,
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
        known: its listing when `wanted` and `fill` were made for it.
        wanted: what the new ones are; their names are chosen here, and how many there are is kept.
        dtype: of their rows.
        fill: makes their contents.
        resume: go on with shards that a run before has begun, where they are of the same kind, and keep what
            is begun if this fails. Else it is removed.
        missing: how many items `fill` has left out and said so.

    Returns:
        The names of the old shards, for `remove_old`.

    Raises:
        GalleryError: somebody else does or did the same, the new shards do not hold what the old ones do,
            the disk is full or fails. Then the old ones are in their place, and take changes.
    """
    folder = checked_path("path", path)
    with _alone(folder), ShardedGallery(folder, wait=_WAIT) as old, ExitStack() as opened:
        if old.listing != known:
            raise GalleryError(f"{folder}: its shards were changed over meanwhile; run this again if need be")
        _check_newest(folder, old.listing)
        for shard in old.shards:
            shard.retire(False)  # of a run that was killed before its switch
        new = _begun(folder, old.listing, wanted, dtype, resume, opened)
        try:
            _fill_and_switch(folder, old, new, fill, missing)
        except BaseException:
            if not resume and os.path.lexists(folder / NEXT):  # else the new shards are in their place
                _give_up(folder, new)
            raise
        return list(old.listing.shards)


def _fill_and_switch(
    folder: Path, old: ShardedGallery, new: Sequence[Gallery], fill: Fill, missing: Callable[[], int]
) -> None:
    """Bring the new shards in step with the old ones, in passes, and let them take their place."""
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
        if any(shard.snapshot().fingerprint != old.fingerprint for shard in old.shards):
            raise GalleryError(f"{folder}: a shard has rows of another bundle by now; the old shards stay")
        _switch(folder, old.shards)


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

    return succeed(path, listing, listing._replace(shards=("",) * count), dtype, fill)


def remove_old(path: str | Path, names: Sequence[str]) -> None:
    """Remove galleries whose place other shards took. Whoever has them open is told so.

    Args:
        path: the folder of the sharded gallery.
        names: of theirs, as `rebalance` returned them; what is not there any more is left out.

    Raises:
        GalleryError: one is a shard, nothing took its place, or the disk fails. Then none is removed, or not
            all are.
        UsageError: no list of names.
    """
    folder = checked_path("path", path)
    wanted = list(checked_list("names", names, "name of a folder"))
    for name in wanted:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(f"a name is {shown(name, 60)}; expected that of a gallery in {folder}")
    current = read_listing(folder).shards
    there = [name for name in wanted if os.path.lexists(folder / name)]
    for name in there:
        if name in current:
            raise GalleryError(f"{folder / name}: is a shard of {folder}; it stays")
        if not is_retired(folder / name):
            raise GalleryError(f"{folder / name}: no other shards took its place; it stays")
    for name in there:
        _remove(folder / name)


def _remove(place: Path) -> None:
    """Remove a gallery. No writer finds one in which only the mark that it refuses changes is gone."""
    with files.told_as_gallery_error("removing an old shard", place):
        if place.is_symlink():
            raise GalleryError(f"{place}: is a link; remove it and what it leads to")
        if place.name.endswith(_REMOVED):
            aside = place
        else:
            aside = place.with_name(place.name + _REMOVED)
            if aside.exists():
                shutil.rmtree(aside)
            place.rename(aside)
        shutil.rmtree(aside)


def _switch(folder: Path, old: Sequence[Gallery]) -> None:
    """Let the new shards take the place of the old ones, or these take changes again."""
    try:
        for shard in old:
            shard.retire()
        with files.told_as_gallery_error("changing over", folder / FILE):
            (folder / NEXT).replace(folder / FILE)
    except BaseException:
        if os.path.lexists(folder / NEXT):  # else it was done before an interrupt came
            for shard in old:
                with suppress(GalleryError):  # the next run does it
                    shard.retire(False)
        raise
    try:
        sync_folder(folder)
    except OSError as error:
        raise GalleryError(
            f"{folder}: the new shards answer, and whether that outlasts a power cut is not known "
            f"({error.strerror or error}); keep the old ones until the disk is well"
        ) from error


def _give_up(folder: Path, begun: Sequence[Gallery]) -> None:
    """Remove what was begun, as far as the disk lets it be; the next run does the rest."""
    with suppress(GalleryError), files.told_as_gallery_error("giving up what was begun", folder / NEXT):
        for shard in begun:
            _remove(Path(shard.path))
        (folder / NEXT).unlink()  # last: until then it says whose they are


def _sets(folder: Path) -> list[tuple[Path, int]]:
    """The galleries of all sets that lie in a folder, and the numbers of their sets; 0 for the first."""
    with files.told_as_gallery_error("looking at the shards", folder):
        found = [(entry, _SET.fullmatch(entry.name)) for entry in sorted(folder.iterdir())]
    return [(entry, int(match[1] or 0)) for entry, match in found if match]


def _check_newest(folder: Path, listing: Listing) -> None:
    """Make sure that no shards are lost to a `shards.json` that is older than they are.

    Every set with items was replaced, or is named by one of the two listings.
    """
    named = {*listing.shards, *_noted(folder)}
    for place, _ in _sets(folder):
        if place.name in named or place.name.endswith(_REMOVED) or is_retired(place):
            continue
        try:
            with Gallery.open(place, read_only=True) as gallery:
                held = f"holds {len(gallery):,} items" if len(gallery) else None
        except GalleryError as error:
            held = f"cannot be opened ({shown(str(error), 300)})"
        if held is not None:
            raise GalleryError(
                f"{place}: {held}, no other shards took its place, and {FILE} does not name it; put the "
                f"newest {FILE} back, or move the gallery elsewhere if it is none of the shards"
            )


def _noted(folder: Path) -> tuple[str, ...]:
    """The names in `next.json`, none where there is none or it is damaged."""
    with suppress(GalleryError):
        return read_listing(folder, NEXT).shards
    return ()


def _begun(
    folder: Path, old: Listing, wanted: Listing, dtype: str, resume: bool, opened: ExitStack
) -> list[Gallery]:
    """The new shards: those that a run before has begun, or empty ones."""
    if resume and (shards := _continued(folder, old, wanted, dtype, opened)):
        return shards
    sets = _sets(folder)
    for place, _ in sets:
        if place.name not in old.shards:
            _remove(place)  # begun and given up, or replaced and not removed
    with files.told_as_gallery_error("giving up what was begun", folder / NEXT):
        for name in {match[1] for entry in folder.iterdir() if (match := _DRAFT.fullmatch(entry.name))}:
            drafts.sweep(folder / name)
        (folder / NEXT).unlink(missing_ok=True)
    prefix = f"s{max((number for _, number in sets), default=0) + 1}-"
    listing = wanted._replace(shards=names_of(len(wanted.shards), prefix))
    shards = made(folder, listing, dtype, opened)
    listing.write(folder, NEXT)
    return shards


def _continued(
    folder: Path, old: Listing, wanted: Listing, dtype: str, opened: ExitStack
) -> list[Gallery] | None:
    """The new shards that a run before has begun, None where there are none or not such ones."""
    names = _noted(folder)
    if not names or set(names) & set(old.shards) or len(names) != len(wanted.shards):
        return None
    if not all((folder / name).is_dir() for name in names):  # a run was killed while it gave them up
        return None
    if read_listing(folder, NEXT)._replace(shards=()) != wanted._replace(shards=()):
        return None
    shards = []
    for name in names:
        try:
            shards.append(opened.enter_context(Gallery.open(folder / name, wait=_WAIT)))
        except GalleryError as error:
            raise GalleryError(
                f"{error}. It was begun by a run before; where it cannot be mended, remove {folder / NEXT} "
                f"and the galleries that it names, then run this again"
            ) from error
    rows = wanted.fingerprint, wanted.dimension, wanted.tokens_per_item
    for shard in shards:
        snapshot = shard.snapshot()
        if (snapshot.fingerprint, snapshot.dimension, snapshot.tokens_per_item) != rows:
            return None
    return shards if all(one.dtype == dtype for one in shards) else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Be the only one who changes over a sharded gallery."""
    read_listing(folder)
    with files.told_as_gallery_error("locking", folder / _LOCK):
        file = locked_file(files.open_file, folder / _LOCK, os.O_RDWR | os.O_CREAT)
    with file:
        try:
            with files.told_as_gallery_error("locking", folder / _LOCK):
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except GalleryError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise GalleryError(f"{folder}: somebody else changes its shards over; wait for that") from error
        yield
