"""What a sharded gallery is on the disk: a folder of galleries of one model, and `shards.json`.

    shop.shards/
        shards.json       {"format": "cir-shards", "version": 1, "rule": "sha256 mod 4", "fingerprint": "...",
                           "dimension": 512, "tokens_per_item": 1, "shards": ["0000.gallery", ...]}
        0000.gallery ...  an ordinary gallery each, with all its guarantees and a writer of its own

An item lies in the shard that its id says: the first eight bytes of SHA-256 over its UTF-8, big endian,
modulo the number of shards. The order of the shards is that of the file. The folder is there whole or
not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.foreign import read_json
from cir_infer.gallery import Gallery
from cir_infer.gallery.arguments import checked_fingerprint, checked_path
from cir_infer.gallery.disk import files
from cir_infer.gallery.disk.drafts import drafted
from cir_infer.gallery.rows.vectors import check_shape, rows_at_once
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.inputs.arguments import checked_number

__all__ = ["FILE", "MOST_SHARDS", "ShardedGallery", "check_different", "shard_of"]

FILE = "shards.json"
MOST_SHARDS = 256
_FORMAT, _VERSION = "cir-shards", 1
_MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_TOGETHER = 1 << 17
_TELLING = 64


def shard_of(item: str, count: int) -> int:
    """The shard of an id among so many."""
    return int.from_bytes(hashlib.sha256(item.encode()).digest()[:8], "big") % count


class ShardedGallery:
    """The galleries of a folder with `shards.json`, opened.

    Args:
        path: the folder.
        read_only: refuse every change.

    Attributes:
        path: the folder.
        fingerprint: of the bundle or model that made the rows, None where nobody said.
        shards: the galleries, in order.

    Raises:
        GalleryError: not such a folder, damaged, of a newer format, or a shard is of another model or shape,
            is another's place or a gallery that is there twice.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = checked_path("path", path)
        said = _read(self.path)
        self.fingerprint: str | None = said["fingerprint"]
        self.shards: list[Gallery] = []
        try:
            for name in said["shards"]:
                gallery = Gallery.open(self.path / name, read_only=read_only)
                self.shards.append(gallery)
                snapshot = gallery.snapshot()
                found = (snapshot.fingerprint, snapshot.dimension, snapshot.tokens_per_item)
                wanted = (self.fingerprint, said["dimension"], said["tokens_per_item"])
                if found != wanted:
                    raise GalleryError(
                        f"{gallery.path}: its rows are {_rows(*found)}, those of {self.path} are "
                        f"{_rows(*wanted)}; put the right gallery there, or make the shards anew"
                    )
                _check_place(self.path, gallery, snapshot, len(self.shards) - 1, len(said["shards"]))
            check_different(self.shards)
        except BaseException:
            self.close()
            raise

    @classmethod
    def split(cls, gallery: Gallery | ShardedGallery, path: str | Path, into: int) -> ShardedGallery:
        """Make a sharded gallery of the live items of a gallery, which stays as it is and goes on answering.

        Ids, metadata, sources and stamps are kept, rows too; int8 rows take the way of an export. What is
        added or removed meanwhile is not in it.

        Args:
            gallery: the items, as they are now; a sharded one for another number of shards.
            path: a folder that does not exist yet.
            into: how many shards, 1 to 256.

        Raises:
            GalleryError: the path exists or lies in the gallery, the gallery is damaged, an id is in two of
                its shards, or the disk is full or fails.
        """
        count = checked_number("into", into)
        if count > MOST_SHARDS:
            raise UsageError(f"into is {shown(into)}; expected 1 to {MOST_SHARDS} shards")
        place = checked_path("path", path)
        sources = [gallery] if isinstance(gallery, Gallery) else gallery.shards
        for source in sources:
            source.check_outside(place, "its shards")
        parts = [(source, source.snapshot()) for source in sources]
        snapshot = parts[0][1]
        names = [f"{number:04d}.gallery" for number in range(count)]
        with drafted(place) as draft:
            draft.mkdir()
            with ExitStack() as opened:
                shards = [
                    opened.enter_context(
                        Gallery.create(
                            draft / name,
                            dtype=str(snapshot.rows.dtype),
                            dimension=snapshot.dimension,
                            tokens_per_item=snapshot.tokens_per_item,
                            fingerprint=snapshot.fingerprint,
                        )
                    )
                    for name in names
                ]
                for part in parts:
                    _fill(shards, *part)
            said = {
                "format": _FORMAT,
                "version": _VERSION,
                "rule": f"sha256 mod {count}",
                "fingerprint": snapshot.fingerprint,
                "dimension": snapshot.dimension,
                "tokens_per_item": snapshot.tokens_per_item,
                "shards": names,
            }
            (draft / FILE).write_text(json.dumps(said, indent=1), "utf-8")
            files.sync_tree(draft)
        return cls(place)

    def close(self) -> None:
        """Close the galleries."""
        while self.shards:
            self.shards.pop().close()

    def __enter__(self) -> ShardedGallery:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def __repr__(self) -> str:
        return f"<ShardedGallery {self.path}: {len(self.shards)} shards>"

    def of(self, item: str) -> Gallery:
        """The shard in which an id belongs: add, replace and remove it there."""
        return self.shards[shard_of(item, len(self.shards))]


def check_different(galleries: Sequence[Gallery]) -> None:
    """Make sure that none of several galleries is there twice, under another name or as a copy.

    Raises:
        GalleryError: one is: its items would be answered twice.
    """
    known: dict[str, Gallery] = {}
    for gallery in galleries:
        name = gallery.uuid or os.path.realpath(gallery.path)  # format 1 has no identity
        if name in known:
            raise GalleryError(
                f"{gallery.path}: is the gallery {known[name].path} again, or a copy of it, so its items "
                "would be answered twice; name each shard once"
            )
        known[name] = gallery


def _check_place(path: Path, gallery: Gallery, snapshot: Snapshot, number: int, count: int) -> None:
    """Make sure that a shard is where its ids say. A few tell: those of others spread over all shards."""
    for item in snapshot.ids(snapshot.live_rows()[:_TELLING]):
        right = shard_of(item, count)
        if right != number:
            raise GalleryError(
                f"{gallery.path}: holds {shown(item)}, which belongs in shard {right} of {path} and not in "
                f"shard {number}; put each gallery under its own name again, or make the shards anew"
            )


def _fill(shards: Sequence[Gallery], gallery: Gallery, snapshot: Snapshot) -> None:
    """Add each item to the shard in which it belongs, in their order."""
    live = snapshot.live_rows()
    step = rows_at_once(snapshot.row_shape, _TOGETHER)
    for start in range(0, len(live), step):
        rows = live[start : start + step]
        items, keys = snapshot.items(rows), snapshot.keys(rows)
        stamps = gallery.stamps_of(keys.tolist())
        places = np.array([shard_of(item.id, len(shards)) for item in items])
        for number in np.unique(places).tolist():
            mine = np.flatnonzero(places == number).tolist()
            shards[number].add_vectors(
                ids=[items[at].id for at in mine],
                vectors=snapshot.rows.take(rows[mine]),
                metadata=[items[at].metadata for at in mine],
                sources=[items[at].source for at in mine],
                stamps=[stamps.get(int(keys[at])) for at in mine],
            )


def _rows(fingerprint: str | None, dimension: int, tokens: int) -> str:
    return f"{tokens} x {dimension} of {shown(fingerprint, 80)}"


def _read(path: Path) -> dict[str, Any]:
    """What `shards.json` says, looked at."""
    place = path / FILE
    if not place.is_file():
        raise GalleryError(
            f"{path}: has no {FILE}, so it is no sharded gallery; make one with `cir-gallery shard`"
        )
    if place.stat().st_size > _MOST_BYTES:
        raise GalleryError(f"{place}: is absurdly long; restore it from a copy")
    try:
        said = read_json(place.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise GalleryError(f"{place}: cannot be read ({shown(error)}); restore it from a copy") from error
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise GalleryError(f'{place}: does not say "format": "{_FORMAT}"; restore it from a copy')
    version = said.get("version")
    if type(version) is int and version > _VERSION:
        raise GalleryError(
            f"{place}: found format {version}, this version reads {_VERSION}; upgrade cir-infer"
        )
    fault = _fault(said)
    if fault is not None:
        raise GalleryError(f"{place}: {fault}; restore it from a copy")
    return said


def _fault(said: dict[str, Any]) -> str | None:
    """What is wrong with the fields of `shards.json`, None for nothing."""
    listed = said.get("shards")
    names: list[Any] = listed if isinstance(listed, list) else []
    expected = {"format", "version", "rule", "fingerprint", "dimension", "tokens_per_item", "shards"}
    if set(said) != expected or said["version"] != _VERSION:
        return f"its fields are {shown(sorted(said), 200)}; expected {sorted(expected)}"
    if not 1 <= len(names) <= MOST_SHARDS or len({str(name) for name in names}) != len(names):
        return f"it names {len(names)} shards; expected 1 to {MOST_SHARDS} different ones"
    wrong = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
    if wrong:
        return f"a shard is {shown(wrong[0], 60)}; expected the name of a folder beside it"
    if said["rule"] != f"sha256 mod {len(names)}":
        return f"its rule is {shown(said['rule'], 60)}; expected sha256 mod {len(names)}"
    numbers = (said["dimension"], said["tokens_per_item"])
    try:
        if not all(type(number) is int for number in numbers):
            raise UsageError(f"a row is {shown(numbers)}")
        check_shape(numbers[1], numbers[0])
        checked_fingerprint(said["fingerprint"])
    except UsageError as error:
        return str(error)
    return None
