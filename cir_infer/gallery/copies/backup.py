"""Backups: a gallery of its own that holds what another one held at one commit.

A backup shares row files with its origin by hard links where the file system allows, since row files never
change; else they are copied. Running again brings it up to date in one commit, with what has changed only.

Nothing but a pin is held in the origin, so others write, compact and re-encode meanwhile: a pinned commit's
row files and items stay, and neither ever changes. A new backup is made as the draft `.<name>.backup`, a
gallery too, and gets its name when it is whole and verified; what a killed run left is continued by the next.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cir_infer.console.progress import progress_bar
from cir_infer.errors import GalleryError, lack, shown
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.lineage import (
    all_segments,
    bury_only,
    garbage_keys,
    item_checksums,
    note_copied,
    sound_items,
    take_encoding,
)
from cir_infer.gallery.catalogue.lineage import lineage as lineage_of
from cir_infer.gallery.catalogue.schema import stored_version
from cir_infer.gallery.disk import drafts, files
from cir_infer.gallery.disk.folder import resolved
from cir_infer.gallery.disk.outcome import forget_durable, tell_durable
from cir_infer.gallery.inspection.verification import verify
from cir_infer.gallery.rows.segments import SegmentEntry
from cir_infer.gallery.store import Store
from cir_infer.processes.folders import sync_folder

__all__ = ["Backup", "back_up"]

_BATCH = 4096
_BLOCK = 8 << 20
_NO_LINKS = (
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS,
)  # fmt: skip

Keys = npt.NDArray[np.int64]


@dataclass
class Backup:
    """What a backup did.

    Attributes:
        path: of the backup.
        generation: the commit of the gallery that it holds.
        items: how many it holds.
        linked: row files that are shared with the gallery from now on.
        copied: row files that were copied.
        kept: row files that were there already.
        bytes: of the copied files.
        verified: whether it was verified.
    """

    path: Path
    generation: int = 0
    items: int = 0
    linked: int = 0
    copied: int = 0
    kept: int = 0
    bytes: int = 0
    verified: bool = False


def back_up(
    store: Store, path: Path, *, verified: bool = True, link: bool = True, progress: bool = False
) -> Backup:
    """Make a backup, or bring the one at the path up to date.

    Args:
        store: the gallery.
        path: of the backup: nothing, an empty folder, or an earlier backup of this gallery.
        verified: verify the result.
        link: share row files where the file system allows.
        progress: say how far it is: bars on a terminal, elsewhere log lines.

    Raises:
        GalleryError: something else is at the path, the gallery or the result is damaged, the backup is
            being written to, or a disk is full or fails. An earlier backup is as it was, but if it does not
            verify.
    """
    path = resolved(path)
    made: list[object] = []
    try:
        with store.catalogue.unexchanged():
            _check_place(store, path)
            report = Backup(path)
            if not _is_there(path) and not _made_anew(store, path, verified, link, progress, report, made):
                made.clear()  # another call has made it meanwhile
                report = Backup(path)
            if not made:
                with closing(_opened(store, path)) as target:
                    target.change(_bring_up, store, target, link, progress, report)
                    _verify(target, verified, progress, report)
            return report
    except BaseException as error:
        if made:
            forget_durable(error)  # what was said of the draft
            if drafts.identity_of(path) in made:
                tell_durable(error, f"{path} is whole and in its place")
        raise


def _is_there(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _made_anew(
    store: Store, path: Path, verified: bool, link: bool, progress: bool, report: Backup, made: list[object]
) -> bool:
    """Make a backup where there is none; False where another call did so meanwhile."""
    draft = path.with_name(f".{path.name}.backup")
    made.append(draft)
    try:
        _begin(store, draft)
        with closing(_opened(store, draft)) as target:
            identity = target.folder.identity
            target.change(_bring_up, store, target, link, progress, report)
            try:
                _verify(target, verified, progress, report)
            except GalleryError:
                if drafts.identity_of(draft) == identity:
                    shutil.rmtree(draft, ignore_errors=True)
                raise
        made.append(identity)
        with files.told_as_gallery_error("giving the backup its name", path):
            draft.rename(path)
            sync_folder(path.parent)
            drafts.sweep(draft)  # of the gallery that it began as, if the run that made it was killed
    except GalleryError:
        if not _is_there(path):
            raise
        # What was begun when the other call had given the name already.
        with suppress(GalleryError), closing(_opened(store, draft)) as late, late.writing():
            shutil.rmtree(draft, ignore_errors=True)
        return False
    return True


# ---- where it goes


def _identity(store: Store) -> str:
    """Who the gallery is; in format 1, which does not say, the file that its catalogue is."""
    device, inode = store.folder.catalogue
    return store.identity or f"format 1, file {device}:{inode}"


def _check_place(store: Store, path: Path) -> None:
    store.folder.check_outside(path, "its backup")
    if os.path.lexists(path) and not path.is_dir():
        found = "a file" if path.exists() else "a link that leads to itself"
        raise GalleryError(f"{path}: is {found}; choose another path for the backup")


def _begin(store: Store, draft: Path) -> None:
    """Make the gallery that becomes the backup, unless an interrupted run has."""
    if draft.exists():
        try:
            _opened(store, draft).close()
        except GalleryError as error:
            raise GalleryError(
                f"{draft}: is in the way, and no draft of this backup ({shown(error)}); remove it"
            ) from error
    else:
        with files.told_as_gallery_error("making the backup", draft):
            draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            Store.create(draft, [], store.catalogue.state().encoding, origin=_identity(store))
        except GalleryError:
            if not draft.exists():  # or else another call has begun with it
                raise


def _opened(store: Store, path: Path) -> Store:
    """An earlier backup, or a draft of one.

    Raises:
        GalleryError: it is none of this gallery, or has been changed by others.
    """
    try:
        target = Store(path, False, store.wait)
    except GalleryError as error:
        if lack(error) is not None:
            raise
        raise GalleryError(
            f"{path}: is no backup of this gallery ({shown(error)}); choose another path"
        ) from error
    try:
        with target.catalogue.reading() as connection:
            lineage = lineage_of(connection)
        if lineage is None:
            raise GalleryError(f"{path}: is a gallery, and no backup of this one; choose another path")
        if lineage.origin != _identity(store):
            hint = "; the gallery was upgraded since it was made" if lineage.origin[:7] == "format " else ""
            raise GalleryError(f"{path}: is the backup of another gallery{hint}; choose another path")
        if lineage.strayed:
            raise GalleryError(
                f"{path}: was changed since it was made, so it is a gallery of its own now, and is not "
                "brought up to date; choose another path"
            )
    except BaseException:
        target.close()
        raise
    return target


# ---- what goes there


def _bring_up(store: Store, target: Store, link: bool, progress: bool, report: Backup) -> None:
    """Make the target hold what the gallery holds now, in one commit."""
    pinned = store.snapshot()  # what this commit and all later ones name stays there
    state = store.catalogue.state()
    with target.catalogue.reading() as connection:
        lineage = lineage_of(connection)
        held = all_segments(connection)
    assert lineage is not None
    if lineage.copied > state.generation:
        raise GalleryError(
            f"{target.path}: holds commit {lineage.copied} of the gallery, which is at {state.generation}, "
            "so it comes from an older copy; choose another path"
        )
    report.generation = state.generation
    segments = [store.segment(entry, state.encoding) for entry in state.segments]
    empty = np.empty(0, np.int64)
    keys = np.concatenate([empty, *(segment.all_keys() for segment in segments)])
    dead = np.concatenate([np.empty(0, np.bool_), *(s.buried(state.buried) for s in segments)])
    report.items = int(len(keys) - dead.sum())
    with files.told_as_gallery_error("copying rows", target.path):
        for entry in progress_bar(state.segments, len(state.segments), "copying", "file", progress):
            _fetch(store, target, entry, held.get(entry.number), link, report)
        sync_folder(target.folder.rows)
    if lineage.copied < state.generation:
        target.commit(partial(_replace, store, state, keys, keys[dead]))
    del pinned


def _fetch(
    store: Store, target: Store, entry: SegmentEntry, held: SegmentEntry | None, link: bool, report: Backup
) -> None:
    """Make sure that a row file is in the backup, whole and under its name."""
    rows = target.folder.rows.fd
    if held is not None:
        if held != entry:
            raise GalleryError(
                f"{target.path}: holds other rows under the name {entry.name}, so the gallery comes from "
                "another copy; choose another path"
            )
        if files.is_regular(entry.name, rows) and os.stat(entry.name, dir_fd=rows).st_size == entry.bytes:
            report.kept += 1
            return
    elif _is_whole(entry, rows):  # of an interrupted run
        report.kept += 1
        return
    files.remove(entry.name, rows)
    if link and _link(store, target, entry):
        report.linked += 1
        return
    with (
        files.open_file(entry.name, os.O_RDONLY, store.folder.rows.fd) as source,
        files.NewFile(entry.name, rows) as copy,
    ):
        while block := source.read(_BLOCK):
            copy.write(block)
        digest = copy.sync()
    if digest != entry.sha256:
        files.remove(entry.name, rows)
        raise GalleryError(
            f"{store.path}: {entry.name} is damaged (another sha256 than the catalogue's); run cir-gallery "
            "verify"
        )
    report.copied += 1
    report.bytes += entry.bytes


def _is_whole(entry: SegmentEntry, rows: int) -> bool:
    if not files.is_regular(entry.name, rows):
        return False
    with files.open_file(entry.name, os.O_RDONLY, rows) as file:
        return os.fstat(file.fileno()).st_size == entry.bytes and files.sha256_of(file) == entry.sha256


def _link(store: Store, target: Store, entry: SegmentEntry) -> bool:
    source, rows = store.folder.rows.fd, target.folder.rows.fd
    if not files.is_regular(entry.name, source):
        raise GalleryError(f"{store.path}: {entry.name} is missing; run cir-gallery verify")
    try:
        os.link(entry.name, entry.name, src_dir_fd=source, dst_dir_fd=rows, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def _replace(
    store: Store, state: tables.State, keys: Keys, dead: Keys, connection: tables.Connection
) -> None:
    """Make the tables of the backup hold a state of the gallery; who reads the backup is not disturbed."""
    current = tables.header(connection, "encoding")
    held = {entry.number: entry for entry in tables.segments_of(connection, current)}
    take_encoding(connection, state.encoding)
    wanted = {entry.number: entry for entry in state.segments}
    present = _same_items(store, connection)
    waiting = garbage_keys(connection)
    gone = np.setdiff1d(np.setdiff1d(present, keys), waiting)
    tables.retire(connection, [held[number] for number in held.keys() - wanted.keys()], gone)
    for number in sorted(wanted.keys() - held.keys()):
        tables.insert_segment(connection, state.encoding.number, wanted[number])
    for batch in _items(store, np.setdiff1d(keys, present)):
        tables.insert_items(connection, batch)
    bury_only(connection, np.concatenate([dead, gone, waiting]))
    tables.set_header(connection, "next_key", state.next_key)
    note_copied(connection, state.generation)


def _same_items(store: Store, connection: tables.Connection) -> Keys:
    """The keys of the backup's items; those that the gallery has too are the same items there.

    Raises:
        GalleryError: they are not, so the two have gone different ways.
    """
    here, sums = item_checksums(connection)
    with store.catalogue.reading() as source:
        if stored_version(source) > 1:
            there, others = item_checksums(source)
            _, ours, theirs = np.intersect1d(here, there, assume_unique=True, return_indices=True)
            if (sums[ours] != others[theirs]).any():
                raise GalleryError(
                    f"{store.path}: its backup holds other items under the same keys, so one of the two "
                    "comes from another copy; choose another path"
                )
    return here


def _items(store: Store, keys: Keys) -> Iterator[list[tuple[int, tables.ItemRecord]]]:
    """Items of the gallery, in batches; each fits its checksum."""
    for start in range(0, len(keys), _BATCH):
        wanted = [int(key) for key in keys[start : start + _BATCH]]
        with store.catalogue.reading() as connection:
            yield [(item.key, item.record()) for item in sound_items(connection, wanted)]


def _verify(target: Store, verified: bool, progress: bool, report: Backup) -> None:
    if not verified:
        return
    problems = verify(target, progress=progress).problems
    if problems:
        more = f" (and {len(problems) - 1:,} more)" if len(problems) > 1 else ""
        raise GalleryError(
            f"{report.path}: the backup does not verify: {problems[0]}{more}; verify the gallery, and make "
            "the backup anew at another path"
        )
    report.verified = True
