"""What a sharded gallery is on the disk: a folder of galleries of one model, and `shards.json`.

    shop.shards/
        shards.json       {"format": "cir-shards", "version": 1, "rule": "sha256 mod 4", "fingerprint": "...",
                           "dimension": 512, "tokens_per_item": 1, "shards": ["0000.gallery", ...]};
                           version 2 has "bundle", the path of the bundle, too
        0000.gallery ...  an ordinary gallery each, with all its guarantees and a writer of its own

An item lies in the shard that its id says: the first eight bytes of SHA-256 over its UTF-8, big endian,
modulo the number of shards. The order of the shards is that of the file. The folder is there whole or
not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.arguments import checked_ids, checked_path
from cir_infer.gallery.disk import files
from cir_infer.gallery.disk.drafts import Made, drafted, tell_of
from cir_infer.gallery.opened import WAIT
from cir_infer.gallery.rows.vectors import rows_at_once
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.inputs.arguments import checked_number
from cir_infer.shards.listing import MOST_SHARDS, Listing, read_listing

__all__ = [
    "ShardedGallery",
    "check_different",
    "checked_shards",
    "made",
    "names_of",
    "shard_of",
    "spread",
]

_TOGETHER = 1 << 17
_TELLING = 64


def shard_of(item: str, count: int) -> int:
    """The shard of an id among so many; of what is no Unicode and no id, too."""
    told = item.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.sha256(told).digest()[:8], "big") % count


class ShardedGallery:
    """The galleries of a folder with `shards.json`, opened.

    Args:
        path: the folder.
        read_only: refuse every change.
        wait: how many seconds a change of a shard waits for another writer.

    Attributes:
        path: the folder.
        listing: what `shards.json` said when this was opened.
        shards: the galleries, in order.

    Raises:
        GalleryError: not such a folder, damaged, of a newer format, or a shard is of another model or shape,
            is another's place or a gallery that is there twice.
    """

    def __init__(self, path: str | Path, read_only: bool = False, wait: float = WAIT) -> None:
        self.path = checked_path("path", path)
        self.listing = said = read_listing(self.path)
        self.shards: list[Gallery] = []
        try:
            for name in said.shards:
                gallery = Gallery.open(self.path / name, read_only=read_only, wait=wait)
                self.shards.append(gallery)
                snapshot = gallery.snapshot()
                found = (snapshot.fingerprint, snapshot.dimension, snapshot.tokens_per_item)
                wanted = said[:3]
                if found != wanted:
                    raise GalleryError(
                        f"{gallery.path}: its rows are {_rows(*found)}, those of {self.path} are "
                        f"{_rows(*wanted)}; put the right gallery there, or make the shards anew"
                    )
                _check_place(self.path, gallery, snapshot, len(self.shards) - 1, len(said.shards))
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
            UsageError: an argument is not what is said above.
        """
        count = checked_shards(into)
        place = checked_path("path", path)
        if not isinstance(gallery, (Gallery, ShardedGallery)):
            raise UsageError(f"gallery is {shown(gallery)}; expected a Gallery or a ShardedGallery")
        sources = [gallery] if isinstance(gallery, Gallery) else gallery._opened()
        for source in sources:
            source.check_outside(place, "its shards")
        parts = [(source, source.snapshot()) for source in sources]
        snapshot = parts[0][1]
        listing = Listing(
            snapshot.fingerprint,
            snapshot.dimension,
            snapshot.tokens_per_item,
            names_of(count),
            None if isinstance(gallery, Gallery) else gallery.listing.bundle,
        )
        made: Made = []
        try:
            with _drafted(place, made, listing, str(snapshot.rows.dtype)) as shards:
                for part in parts:
                    spread(shards, *part)
            return cls(place)
        except BaseException as error:
            tell_of(error, place, made)
            raise

    @classmethod
    def create(
        cls,
        path: str | Path,
        into: int,
        dtype: str = "float16",
        *,
        dimension: int,
        tokens_per_item: int = 1,
        fingerprint: str | None = None,
        bundle: str | None = None,
    ) -> ShardedGallery:
        """Make an empty one.

        Args:
            path: a folder that does not exist yet.
            into: how many shards, 1 to 256.
            dtype: see `Gallery.create`, as what follows.
            dimension: D.
            tokens_per_item: M.
            fingerprint: of the bundle or model that will make the rows.
            bundle: the path of the bundle, for those who open this later.

        Raises:
            GalleryError: the path exists, or the disk is full or fails.
            UsageError: an argument is not what is said above.
        """
        count, place = checked_shards(into), checked_path("path", path)
        dimension = checked_number("dimension", dimension)
        tokens_per_item = checked_number("tokens_per_item", tokens_per_item)
        known = None if bundle is None else str(checked_path("bundle", bundle).absolute())
        listing = Listing(fingerprint, dimension, tokens_per_item, names_of(count), known)
        made: Made = []
        try:
            with _drafted(place, made, listing, dtype):
                pass
            return cls(place)
        except BaseException as error:
            tell_of(error, place, made)
            raise

    @property
    def fingerprint(self) -> str | None:
        """Of the bundle or model that made the rows, None where nobody said."""
        return self.listing.fingerprint

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
        return f"<ShardedGallery {self.path}: {len(self.shards):,} shards>"

    def of(self, item: str) -> Gallery:
        """The shard in which an id belongs: add, replace and remove it there.

        Raises:
            GalleryError: it is no id.
        """
        (known,) = checked_ids([item])
        shards = self._opened()
        return shards[shard_of(known, len(shards))]

    def _opened(self) -> list[Gallery]:
        """The galleries.

        Raises:
            GalleryError: they are closed.
        """
        if not self.shards:
            raise GalleryError(f"{self.path}: this sharded gallery is closed; open it again")
        return self.shards


def checked_shards(into: int) -> int:
    """A number of shards.

    Raises:
        UsageError: it is none.
    """
    count = checked_number("into", into)
    if count > MOST_SHARDS:
        raise UsageError(f"into is {shown(into)}; expected 1 to {MOST_SHARDS} shards")
    return count


def names_of(count: int, prefix: str = "") -> tuple[str, ...]:
    """What the folders of so many shards are called."""
    return tuple(f"{prefix}{number:04d}.gallery" for number in range(count))


@contextmanager
def _drafted(place: Path, new: Made, listing: Listing, dtype: str) -> Iterator[list[Gallery]]:
    """The empty galleries of a new folder, which is at its place when the block ends, with what they hold."""
    with drafted(place, new) as draft:
        draft.mkdir()
        with ExitStack() as opened:
            yield made(draft, listing, dtype, opened)
        listing.write(draft)
        files.sync_tree(draft)


def made(folder: Path, listing: Listing, dtype: str, opened: ExitStack) -> list[Gallery]:
    """The galleries of a listing, made empty in a folder.

    Raises:
        GalleryError: see `Gallery.create`.
    """
    return [
        opened.enter_context(
            Gallery.create(
                folder / name,
                dtype=dtype,
                dimension=listing.dimension,
                tokens_per_item=listing.tokens_per_item,
                fingerprint=listing.fingerprint,
            )
        )
        for name in listing.shards
    ]


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


def spread(
    shards: Sequence[Gallery], gallery: Gallery, snapshot: Snapshot, since: int = 0, replacing: bool = False
) -> int:
    """Add each item of a gallery to the shard in which it belongs, in their order.

    Args:
        shards: all of them.
        gallery: whose items.
        snapshot: of it.
        since: only items whose key is at least this.
        replacing: whether an id that is there already is replaced; else it is an error.

    Returns:
        How many there were.

    Raises:
        GalleryError: see `Gallery.add_vectors`.
    """
    live = snapshot.live_rows()
    if since:
        live = live[snapshot.keys(live) >= since]
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
                existing="replace" if replacing else "error",
            )
    return len(live)


def _rows(fingerprint: str | None, dimension: int, tokens: int) -> str:
    return f"{tokens} x {dimension} of {shown(fingerprint, 80)}"
