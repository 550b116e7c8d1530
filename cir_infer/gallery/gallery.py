"""The gallery as its users see it: create, open, add, remove, compact, read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery import metadata as meta
from cir_infer.gallery import tables
from cir_infer.gallery.arguments import checked_column, checked_ids, checked_sources, checked_texts
from cir_infer.gallery.compaction import Compaction, compact, merge_newest
from cir_infer.gallery.duplicates import Duplicates, duplicates_of
from cir_infer.gallery.exported import PART, Part
from cir_infer.gallery.fields import Field, fields_of
from cir_infer.gallery.reencoding import Reencoding
from cir_infer.gallery.rows import as_matrix, check_row_type, checked_vectors, row_tensors, to_rows
from cir_infer.gallery.schema import FORMAT_VERSION, stored_version
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.gallery.store import Store, drafted
from cir_infer.gallery.transfer import export_rows, open_source
from cir_infer.gallery.verification import Verification, verify

if TYPE_CHECKING:
    from cir_infer.engine import Engine

__all__ = ["Existing", "Gallery", "Held"]

Existing = Literal["error", "replace", "skip"]

_LOOK_UP = 8192


class Held(NamedTuple):
    """An item of the gallery, to whoever may replace it.

    Attributes:
        key: grows with every item added or replaced, and is never used twice.
        stamp: which version of its source it was made of, None where nobody said.
        source: where its image came from, None where nobody said.
    """

    key: int
    stamp: str | None
    source: str | None


class Gallery:
    """Rows, ids and metadata in a folder, with the guarantees of a database (docs/gallery.md).

    Every call that changes the gallery is one commit: when it returns, the change is on the disk
    and visible to new snapshots; when it raises or the machine dies, nothing of it is there. One
    process writes at a time, any number read. Threads may share a Gallery.

        gallery = Gallery.create("shop.gallery", engine)
        gallery.add(["a.jpg", "b.jpg"], ids=["a", "b"], metadata=[{"price": 20}, {"price": 35}])
        gallery.snapshot().matching("price < 30")        # 1
    """

    def __init__(self, path: str | Path, engine: Engine | None = None, *, read_only: bool = False) -> None:
        self._store = Store(Path(path), read_only)
        self._engine = engine
        self._expected = None if engine is None else engine.fingerprint
        self._closed = False

    # ---- making and opening

    @classmethod
    def create(
        cls,
        path: str | Path,
        engine: Engine | None = None,
        dtype: str = "float16",
        *,
        dimension: int | None = None,
        fingerprint: str | None = None,
    ) -> Gallery:
        """Make an empty gallery.

        Args:
            path: a folder that does not exist yet.
            engine: gives the dimension and the fingerprint of the rows.
            dtype: how rows are stored: "float32", "float16" or "int8" (with one scale a row).
            dimension: D, where there is no engine.
            fingerprint: of the bundle that will encode the rows, where there is no engine.

        Raises:
            UsageError: neither an engine nor a dimension, or no such row type.
            GalleryError: the path exists, or the disk is full or fails.
        """
        check_row_type(dtype)
        if engine is not None:
            if dimension not in (None, engine.dimension):
                raise UsageError(
                    f"dimension is {dimension}, the engine's rows have {engine.dimension}; leave it out"
                )
            dimension, fingerprint = engine.dimension, engine.fingerprint
        if dimension is None or not 0 < dimension <= 1 << 20:
            raise UsageError(f"dimension is {dimension}; pass an engine, or a dimension from 1 to {1 << 20}")
        Store.create(Path(path), tables.Encoding(1, fingerprint, dimension, dtype))
        return cls(path, engine)

    @classmethod
    def open(cls, path: str | Path, engine: Engine | None = None, read_only: bool = False) -> Gallery:
        """Open a gallery.

        Args:
            path: its folder.
            engine: the engine that will query or add; its bundle must be the one that encoded the
                rows. A gallery without a fingerprint only has to have its dimension.
            read_only: refuse every change.

        Raises:
            GalleryError: not a gallery, damaged, of a newer format, or encoded by another bundle.
        """
        gallery = cls(path, engine, read_only=read_only)
        try:
            gallery.snapshot()
            if engine is not None:
                gallery.check_engine(engine)
        except BaseException:
            gallery.close()
            raise
        return gallery

    @classmethod
    def from_arrays(
        cls,
        path: str | Path,
        *,
        ids: Sequence[str],
        vectors: npt.NDArray[Any],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        sources: Sequence[str | None] | None = None,
        engine: Engine | None = None,
        dtype: str = "float16",
        fingerprint: str | None = None,
    ) -> Gallery:
        """Make a gallery of rows that were computed elsewhere, e.g. a memory-mapped `.npy`.

        Args:
            path: a folder that does not exist yet.
            ids: N distinct strings.
            vectors: (N, D) numbers.
            metadata: N dictionaries (or None).
            sources: N paths of images (or None).
            engine: the engine that the rows are for; stamps the gallery with its fingerprint.
            dtype: see `create`.
            fingerprint: of the bundle, where there is no engine.

        Raises:
            GalleryError: see `add_vectors` and `create`. Nothing is left at the path.
        """
        checked = checked_ids(ids)
        data = checked_column("metadata", metadata, len(checked), "dictionaries or None")
        paths = checked_sources(sources, checked)
        vectors = as_matrix(vectors, len(checked))
        slices = (slice(start, start + PART) for start in range(0, max(len(checked), 1), PART))
        parts = (Part(checked[s], vectors[s], data[s], paths[s]) for s in slices)
        return cls._build(Path(path), parts, engine, dtype, fingerprint, int(vectors.shape[1]))

    @classmethod
    def import_from(
        cls,
        path: str | Path,
        source: str | Path,
        *,
        engine: Engine | None = None,
        dtype: str | None = None,
        fingerprint: str | None = None,
        unknown_fingerprint: bool = False,
    ) -> Gallery:
        """Make a gallery of rows in a clip-retrieval folder or a safetensors file (see `transfer`).

        An export says which bundle encoded its rows, and the gallery keeps that; if an engine or a
        fingerprint is given, it has to be the same. Rows of others say nothing, so then somebody has to.

        Args:
            path: a folder that does not exist yet.
            source: the folder or file.
            engine: the engine that the rows are for.
            dtype: see `create`; by default that of the exported gallery, or float16.
            fingerprint: of the bundle that encoded the rows, where there is no engine.
            unknown_fingerprint: True for rows of which nobody knows the bundle.

        Raises:
            GalleryError: the source cannot be read, is of another bundle or of none that is known, or see
                `add_vectors`. Nothing is left at the path.
        """
        opened = open_source(Path(source))
        if engine is not None and engine.dimension != opened.dimension:
            raise GalleryError(
                f"{source}: its rows have {opened.dimension} dimensions, the bundle's {engine.dimension}; "
                "use the bundle that made the rows"
            )
        wanted = fingerprint if engine is None else engine.fingerprint
        stored = None if opened.about is None else opened.about.dtype
        return cls._build(
            Path(path),
            opened.parts,
            engine,
            dtype or stored or "float16",
            opened.fingerprint(wanted, unknown_fingerprint),
            opened.dimension,
        )

    @classmethod
    def _build(
        cls,
        path: Path,
        parts: Iterable[Part],
        engine: Engine | None,
        dtype: str,
        fingerprint: str | None,
        dimension: int,
    ) -> Gallery:
        with (
            drafted(path) as draft,
            cls.create(draft, engine, dtype, dimension=dimension, fingerprint=fingerprint) as gallery,
        ):
            for part in parts:
                gallery.add_vectors(
                    ids=part.ids, vectors=part.vectors, metadata=part.metadata, sources=part.sources
                )
        return cls.open(path, engine)

    def export(self, target: str | Path, *, overwrite: bool = False) -> None:
        """Write all items to a `.safetensors` file, or to a folder as clip-retrieval lays it out.

        Args:
            target: the file or folder; there whole, or not at all.
            overwrite: take the place of an earlier export; nothing else is ever replaced.

        Raises:
            GalleryError: the target exists, the disk is full, or pyarrow is missing (for folders).
        """
        export_rows(self.snapshot(), Path(target), overwrite)

    def close(self) -> None:
        """Close the catalogue. Snapshots keep their rows, but can no longer look up items."""
        self._closed = True
        self._store.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()

    # ---- reading

    @property
    def path(self) -> Path:
        """The folder."""
        return self._store.path

    @property
    def fingerprint(self) -> str | None:
        """Of the bundle that encoded the rows, None where nobody said."""
        return self.snapshot().fingerprint

    @property
    def dimension(self) -> int:
        """D, the length of a row."""
        return self.snapshot().dimension

    @property
    def dtype(self) -> str:
        """The stored type of a row: "float32", "float16" or "int8"."""
        return str(self.snapshot().rows.dtype)

    @property
    def ids(self) -> list[str]:
        """The ids of all live items in the order in which they were added (a new list each time)."""
        snapshot = self.snapshot()
        return snapshot.ids(snapshot.live_rows())

    def __len__(self) -> int:
        return self.snapshot().count

    def __contains__(self, item: object) -> bool:
        return isinstance(item, str) and self.snapshot().row(item) is not None

    def __repr__(self) -> str:
        if self._closed:
            return f"<Gallery {self.path}, closed>"
        return f"<Gallery {self.path}: {len(self):,} rows x {self.dimension} {self.dtype}>"

    def check_engine(self, engine: Engine) -> None:
        """Raise `GalleryError` unless the engine's bundle is the one that encoded the rows.

        From then on `snapshot` makes the same check, so that a gallery that is changed over to
        another bundle under a running query service is noticed.
        """
        snapshot = self._store.snapshot()
        self._check(engine, snapshot.fingerprint, snapshot.dimension)
        self._engine, self._expected = engine, engine.fingerprint

    def _check(self, engine: Engine, fingerprint: str | None, dimension: int) -> None:
        if fingerprint is None:
            if engine.dimension != dimension:
                raise GalleryError(
                    f"{self.path}: its rows have {dimension} dimensions, the bundle's "
                    f"{engine.dimension}; use the bundle that made the rows"
                )
        elif engine.fingerprint != fingerprint:
            raise GalleryError(
                f"{self.path}: its rows were encoded by bundle {fingerprint}, this bundle is "
                f"{engine.fingerprint}; use the other bundle, or change the gallery over with "
                "`cir-index --reencode`"
            )

    def snapshot(self) -> Snapshot:
        """The newest generation. The same object until there is a newer one.

        Raises:
            GalleryError: the gallery is damaged or closed.
        """
        snapshot = self._store.snapshot()
        if self._engine is not None and snapshot.fingerprint != self._expected:
            self._check(self._engine, snapshot.fingerprint, snapshot.dimension)
        return snapshot

    # ---- writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Stay the one writer for the length of the block, over several commits.

        Raises:
            GalleryError: somebody else is writing, or the gallery is open read-only.
        """
        with self._store.writing():
            yield

    def add(
        self,
        images: Sequence[Any],
        *,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        existing: Existing = "error",
        batch_size: int = 32,
    ) -> int:
        """Encode images and add them, in one commit.

        Args:
            images: n paths, bytes, PIL images or uint8 (H, W, 3) arrays. The path of an image is
                kept as its source. They are all decoded and encoded before the commit, so add a
                large collection in parts, or with `cir-index`.
            ids: n distinct strings.
            metadata: n dictionaries of JSON values (or None).
            existing: see `add_vectors`. With "skip", images of ids held already are not encoded.
            batch_size: how many images the encoder takes at a time.

        Returns:
            How many items were added or replaced.

        Raises:
            UsageError: the gallery was opened without an engine.
            ImageError: an image cannot be decoded.
            GalleryError: see `add_vectors`.
        """
        if self._engine is None:
            raise UsageError(
                "this gallery was opened without an engine; pass engine= to open, or use add_vectors"
            )
        checked = checked_ids(ids)
        images = checked_column("images", images, len(checked), "images")
        data = checked_column("metadata", metadata, len(checked), "dictionaries or None")
        paths = (image if isinstance(image, (str, os.PathLike)) else None for image in images)
        sources = checked_sources(paths, checked)
        for item, entry in zip(checked, data, strict=True):
            meta.encode(entry, item)  # refused now, not after the images have been encoded
        with self.writing():
            with self._store.catalogue.reading() as connection:
                held = tables.live_keys(connection, checked) if existing != "replace" else {}
            if held and existing == "error":
                raise self._held(held, checked)
            keep = [i for i, item in enumerate(checked) if item not in held]
            if not keep:
                return 0
            return self.add_vectors(
                ids=[checked[i] for i in keep],
                vectors=self._engine.encode_images([images[i] for i in keep], batch_size=batch_size),
                metadata=[data[i] for i in keep],
                sources=[sources[i] for i in keep],
                existing=existing,
            )

    def _held(self, held: Mapping[str, int], ids: Sequence[str]) -> GalleryError:
        first = next(item for item in ids if item in held)
        return GalleryError(
            f"{self.path}: already holds id {shown(first)} ({len(held)} of {len(ids)} ids in this call); "
            "pass existing='replace' or existing='skip'"
        )

    def add_vectors(
        self,
        *,
        ids: Sequence[str],
        vectors: npt.NDArray[Any],
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        sources: Sequence[str | None] | None = None,
        stamps: Sequence[str | None] | None = None,
        existing: Existing = "error",
    ) -> int:
        """Add items whose vectors are known, in one commit.

        Args:
            ids: n distinct strings.
            vectors: (n, D) finite numbers, none all zero.
            metadata: n dictionaries of JSON values (or None).
            sources: n paths of images (or None).
            stamps: n texts that say which version of its source an item was made of; kept for
                `cir-index`, which skips what has not changed.
            existing: what to do with an id that the gallery holds: "error" refuses the whole call,
                "replace" puts the new item in its place (an upsert), "skip" keeps the old one.

        Returns:
            How many items were added or replaced.

        Raises:
            GalleryError: see `rows.faults`, `metadata.encode`; an id is held already;
                another writer; the disk is full or fails. The gallery is as it was before.
        """
        if existing not in ("error", "replace", "skip"):
            raise UsageError(f"existing is {shown(existing)}; expected error, replace or skip")
        checked = checked_ids(ids)
        data = checked_column("metadata", metadata, len(checked), "dictionaries or None")
        columns = zip(
            checked,
            data,
            checked_sources(sources, checked),
            checked_texts("stamp", stamps, checked),
            strict=True,
        )
        items = [
            tables.ItemRecord(item, meta.encode(entry, item), source, stamp)
            for item, entry, source, stamp in columns
        ]
        return self._commit(items, vectors, existing)

    def _commit(self, items: list[tables.ItemRecord], array: Any, existing: Existing) -> int:
        with self.writing():
            encoding = self._encoding()
            if self._engine is not None:
                self._check(self._engine, encoding.fingerprint, encoding.dimension)
            rows = checked_vectors(array, [item.id for item in items], encoding.dimension, encoding.dtype)
            with self._store.catalogue.reading() as connection:
                held = tables.live_keys(connection, [item.id for item in items])
            if held and existing == "error":
                raise self._held(held, [item.id for item in items])
            if held and existing == "skip":
                kept = [i for i, item in enumerate(items) if item.id not in held]
                items, rows, held = [items[i] for i in kept], rows[kept], {}
            if not items:
                return 0
            stored, scales = to_rows(rows, encoding.dtype)
            with self._store.catalogue.reading() as connection:
                first_key = tables.header(connection, "next_key")
            last_key = first_key + len(items) - 1
            entry = self._store.write_segment(
                row_tensors(encoding.dtype, stored, scales), first_key, last_key, len(items)
            )

            def change(connection: tables.Connection) -> None:
                tables.insert_items(connection, first_key, items)
                tables.set_buried(connection, held.values(), True)
                tables.insert_segment(connection, encoding.number, entry)
                tables.set_header(connection, "next_key", last_key + 1)

            self._store.commit(change)
            merge_newest(self._store)
            return len(items)

    def remove(self, ids: Sequence[str], *, missing: Literal["error", "skip"] = "error") -> int:
        """Remove items, in one commit.

        Args:
            ids: distinct strings.
            missing: what to do with an id that the gallery does not hold: "error" refuses the
                whole call, "skip" passes over it.

        Returns:
            How many items were removed.

        Raises:
            GalleryError: an id is not held, another writer, the disk is full or fails.
        """
        checked = checked_ids(ids, ordered=False)
        with self.writing():
            with self._store.catalogue.reading() as connection:
                held = tables.live_keys(connection, checked)
            if missing == "error" and len(held) < len(checked):
                first = next(item for item in checked if item not in held)
                raise GalleryError(
                    f"{self.path}: holds no id {shown(first)} ({len(checked) - len(held)} of {len(checked)} "
                    "ids in this call); pass missing='skip'"
                )
            if held:
                self._store.commit(lambda connection: tables.set_buried(connection, held.values(), True))
            return len(held)

    def compact(self) -> Compaction:
        """Drop the rows of removed and replaced items, and merge small segments, while others read.

        Snapshots that are held keep showing what they showed; the space that they need is freed by
        the first commit or compaction after they are let go.

        Returns:
            What was done.

        Raises:
            GalleryError: another writer, or the disk is full or fails.
        """
        return compact(self._store)

    def verify(self) -> Verification:
        """Read everything and check that it fits together: checksums, rows, items, filters.

        Returns:
            What was read, and every problem that was found.

        Raises:
            GalleryError: the gallery cannot be read at all.
        """
        return verify(self._store)

    @property
    def uuid(self) -> str | None:
        """Which gallery this is, None in format 1. A copy of the folder has the same, a backup its own."""
        with self._store.catalogue.reading() as connection:
            return tables.identity(connection)

    @property
    def format_version(self) -> int:
        """The version of the format that its files have (docs/gallery.md)."""
        with self._store.catalogue.reading() as connection:
            return stored_version(connection)

    def upgrade(self, *, verify: bool = True) -> bool:
        """Bring a gallery of an earlier format to the newest, in one commit; the first change would, too.

        Args:
            verify: verify it before, so that no damage gets a checksum.

        Returns:
            False if there was nothing to do.

        Raises:
            GalleryError: it is damaged, another writer, or the disk is full or fails.
        """
        with self.writing():
            if self.format_version == FORMAT_VERSION:
                return False
            problems = self.verify().problems if verify else []
            if problems:
                raise GalleryError(
                    f"{self.path}: is damaged, so it is not upgraded ({problems[0]}); restore it from a copy"
                )
            self._store.commit(lambda _: None)
        return True

    def fields(self) -> list[Field]:
        """The fields of the metadata: names, types, counts, ranges and examples; reads all of it.

        Raises:
            GalleryError: the gallery is damaged or closed.
        """
        return fields_of(self.snapshot())

    def duplicates(self, threshold: float = 0.99, *, progress: bool = False) -> list[Duplicates]:
        """Groups of items whose rows are alike: an exact scan of the gallery against itself.

        Args:
            threshold: the least cosine of a pair, to five decimals; above 0, at most 1.
            progress: show a progress bar on stderr, where that is a terminal.

        Returns:
            Groups of two or more, each item alike to at least one other of its group.

        Raises:
            UsageError: the threshold is out of range.
            GalleryError: the gallery is damaged or closed.
        """
        return duplicates_of(self.snapshot(), threshold, progress=progress)

    def reencoding(self, engine: Engine, dtype: str | None = None) -> Reencoding:
        """Begin, or go on, to make all rows anew with another bundle (`cir-index --reencode` drives this).

        Args:
            engine: of the new bundle.
            dtype: of the new rows, by default that of the old ones.
        """
        encoding = self._encoding()
        dtype = dtype or encoding.dtype
        check_row_type(dtype)
        return Reencoding(self._store, tables.Encoding(0, engine.fingerprint, engine.dimension, dtype))

    @property
    def next_key(self) -> int:
        """The key that the next item will get; for indexers."""
        return self._store.catalogue.state().next_key

    def held(self, ids: Sequence[str]) -> dict[str, Held]:
        """What the catalogue has of those ids that the gallery holds; for indexers."""
        with self._store.catalogue.reading() as connection:
            keys = tables.live_keys(connection, ids)
        found = self._store.catalogue.columns(("stamp", "source"), list(keys.values()))
        if len(found) < len(keys):
            raise GalleryError(
                f"{self.path}: its index of ids is damaged; run verify, restore it from a copy"
            )
        return {item: Held(key, *found[key]) for item, key in keys.items()}

    def stamps(self) -> Iterator[tuple[int, str | None]]:
        """(key, stamp) of every live item, by ascending key; for indexers."""
        snapshot = self.snapshot()
        rows = snapshot.live_rows()
        for start in range(0, len(rows), _LOOK_UP):
            keys = snapshot.keys(rows[start : start + _LOOK_UP]).tolist()
            found = self._store.catalogue.columns(("stamp",), keys)
            yield from ((key, found[key][0]) for key in keys if key in found)

    def stamps_of(self, keys: Sequence[int]) -> dict[int, str | None]:
        """The stamps of some keys, without those that are forgotten; for indexers."""
        return {key: stamp for key, (stamp,) in self._store.catalogue.columns(("stamp",), keys).items()}

    def sources_of(self, keys: Sequence[int]) -> list[tuple[int, str, str | None]]:
        """(key, id, source) of some keys, without those that are forgotten; for indexers."""
        found = self._store.catalogue.columns(("id", "source"), keys)
        return [(key, *found[key]) for key in keys if key in found]

    def items_from(self, root: str) -> list[tuple[str, int, str]]:
        """(id, key, source) of every item whose source begins with `root`; for indexers."""
        snapshot = self.snapshot()
        found = self._store.catalogue.sourced(root)
        live = snapshot.holds(np.array([key for _, key, _ in found], np.int64))
        return [entry for entry, here in zip(found, live, strict=True) if here]

    def _encoding(self) -> tables.Encoding:
        return self._store.catalogue.state().encoding
