"""The gallery as its users see it: create, open, add, remove, compact, read.

Long because every public method says what it takes, gives and raises.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery.arguments import (
    checked_column,
    checked_engine,
    checked_fingerprint,
    checked_ids,
    checked_path,
    checked_sources,
    checked_texts,
    expected_fingerprint,
    tokens_of,
)
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.schema import PLAIN_VERSION
from cir_infer.gallery.changes.additions import (
    EXISTING,
    MISSING,
    Existing,
    Missing,
    add_items,
    already_held,
    held_ids,
    remove_items,
)
from cir_infer.gallery.changes.compaction import Compaction, compact
from cir_infer.gallery.changes.describing import describe_items
from cir_infer.gallery.disk.drafts import Made, drafted, filled, is_vacant, tell_of
from cir_infer.gallery.disk.folder import CATALOGUE
from cir_infer.gallery.metadata import metadata as meta
from cir_infer.gallery.opened import WAIT, Held, OpenGallery
from cir_infer.gallery.rows.vectors import as_matrix, check_row_type, check_shape, row_shape, shape_text
from cir_infer.gallery.store import Store
from cir_infer.inputs.arguments import checked_flag, checked_number, checked_word, plain_path
from cir_infer.inputs.taken import taken

if TYPE_CHECKING:
    from cir_infer.engine import Engine
    from cir_infer.gallery.changes.reencoding import Reencoding
    from cir_infer.gallery.copies.exported import Part

__all__ = ["Existing", "Gallery", "Held"]


class Gallery(OpenGallery):
    """Rows, ids and metadata in a folder, with the guarantees of a database (docs/gallery.md).

    Every call that changes the gallery is one commit: when it returns, the change is on the disk
    and visible to new snapshots; when it raises or the machine dies, nothing of it is there. One
    process writes at a time, any number read. Threads may share a Gallery.

        gallery = Gallery.create("shop.gallery", engine)
        gallery.add(["a.jpg", "b.jpg"], ids=["a", "b"], metadata=[{"price": 20}, {"price": 35}])
        gallery.snapshot().matching("price < 30")        # 1
    """

    @classmethod
    def create(
        cls,
        path: str | Path,
        engine: Engine | None = None,
        dtype: str = "float16",
        *,
        dimension: int | None = None,
        tokens_per_item: int | None = None,
        fingerprint: str | None = None,
    ) -> Gallery:
        """Make an empty gallery.

        Args:
            path: a folder that does not exist yet, or is empty (a volume).
            engine: gives the dimension and the fingerprint of the rows.
            dtype: how rows are stored: "float32", "float16" or "int8" (with one scale a row).
            dimension: D, where there is no engine.
            tokens_per_item: M, how many vectors an item has, where there is no engine; one by default. A
                term of an item is then its largest over them (docs/gallery.md).
            fingerprint: where there is no engine, that of the bundle which will encode the rows, or the
                name of the model that makes them, e.g. "Qwen3-VL-Embedding-2B". Whoever opens the gallery
                under another name is refused.

        Raises:
            UsageError: neither an engine nor a dimension, no such row type, or contradicting arguments.
            GalleryError: the path exists, or the disk is full or fails.
        """
        path = checked_path("path", path)
        check_row_type(dtype)
        if dimension is not None:
            dimension = checked_number("dimension", dimension)
        fingerprint = expected_fingerprint(checked_engine(engine), fingerprint)
        if engine is not None:
            if dimension not in (None, engine.dimension):
                raise UsageError(
                    f"dimension is {shown(dimension)}, the engine's rows have {engine.dimension}; "
                    "leave it out"
                )
            dimension, made = engine.dimension, tokens_of(engine)
            if tokens_per_item not in (None, made):
                raise UsageError(
                    f"tokens_per_item is {shown(tokens_per_item)}, the engine makes {made}; leave it out"
                )
            tokens_per_item = made
        if dimension is None:
            raise UsageError("dimension is None; pass an engine, or the dimension of the vectors")
        tokens = 1 if tokens_per_item is None else checked_number("tokens_per_item", tokens_per_item)
        check_shape(tokens, dimension)
        new: Made = []
        try:
            Store.create(path, new, tables.Encoding(1, fingerprint, dimension, dtype, tokens))
            return cls(path, engine)
        except BaseException as error:
            tell_of(error, path, new)
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        engine: Engine | None = None,
        read_only: bool = False,
        wait: float = WAIT,
        *,
        fingerprint: str | None = None,
    ) -> Gallery:
        """Open a gallery.

        Args:
            path: its folder.
            engine: the engine that will query or add; its bundle must be the one that encoded the
                rows. A gallery without a fingerprint only has to have its dimension.
            read_only: refuse every change.
            wait: how many seconds a change waits for another process (or Gallery object) that is
                writing, before it raises `GalleryBusyError`. Threads of this object wait for each other
                for as long as it takes.
            fingerprint: where there is no engine, what the rows must be of, see `create`; None opens any.

        Raises:
            GalleryError: not a gallery, damaged, of a newer format, or encoded by another bundle or model.
        """
        gallery = cls(path, engine, read_only=read_only, wait=wait, fingerprint=fingerprint)
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
            path: a folder that does not exist yet, or is empty.
            ids: N distinct strings.
            vectors: (N, D) numbers, or (N, M, D) for M vectors an item.
            metadata: N dictionaries (or None).
            sources: N paths of images (or None).
            engine: the engine that the rows are for; stamps the gallery with its fingerprint.
            dtype: see `create`.
            fingerprint: of the bundle or model, where there is no engine; see `create`.

        Raises:
            GalleryError: see `add_vectors` and `create`. Nothing is left at the path.
        """
        from cir_infer.gallery.copies.exported import Part, part_rows

        checked = checked_ids(ids)
        data = checked_column("metadata", metadata, len(checked), "dictionaries or None")
        paths = checked_sources(sources, checked)
        vectors = as_matrix(vectors, len(checked))
        step = part_rows(vectors.shape[1:])
        slices = (slice(start, start + step) for start in range(0, max(len(checked), 1), step))
        parts = (Part(checked[s], vectors[s], data[s], paths[s]) for s in slices)
        place = checked_path("path", path)
        return cls._build(place, parts, engine, dtype, fingerprint, vectors.shape[1:])

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
            path: a folder that does not exist yet, or is empty.
            source: the folder or file.
            engine: the engine that the rows are for.
            dtype: see `create`; by default that of the exported gallery, or float16.
            fingerprint: of the bundle or model that made the rows, where there is no engine.
            unknown_fingerprint: True for rows of which nobody knows the bundle.

        Raises:
            GalleryError: the source cannot be read, is of another bundle or of none that is known, or see
                `add_vectors`. Nothing is left at the path.
        """
        from cir_infer.gallery.copies.transfer import open_source

        place, source = checked_path("path", path), checked_path("source", source)
        checked_flag("unknown_fingerprint", unknown_fingerprint)
        fingerprint = checked_fingerprint(fingerprint)
        if dtype is not None:
            check_row_type(dtype)
        checked_engine(engine)
        opened = open_source(source)
        if engine is not None and row_shape(tokens_of(engine), engine.dimension) != opened.shape:
            raise GalleryError(
                f"{source}: its rows have {shape_text(opened.tokens_per_item, opened.dimension)} dimensions, "
                f"the bundle's {shape_text(tokens_of(engine), engine.dimension)}; use the bundle that "
                "made the rows"
            )
        wanted = fingerprint if engine is None else engine.fingerprint
        stored = None if opened.about is None else opened.about.dtype
        return cls._build(
            place,
            opened.parts,
            engine,
            dtype or stored or "float16",
            opened.fingerprint(wanted, unknown_fingerprint),
            opened.shape,
        )

    @classmethod
    def _build(
        cls,
        path: Path,
        parts: Iterable[Part],
        engine: Engine | None,
        dtype: str,
        fingerprint: str | None,
        shape: tuple[int, ...],
    ) -> Gallery:
        tokens = shape[0] if len(shape) == 2 else 1
        made: Made = []
        try:
            with (
                filled(path, made, CATALOGUE) if is_vacant(path) else drafted(path, made) as draft,
                cls.create(
                    draft,
                    engine,
                    dtype,
                    dimension=shape[-1],
                    tokens_per_item=tokens,
                    fingerprint=fingerprint,
                ) as gallery,
            ):
                for part in parts:
                    vectors = part.vectors[:, 0] if len(shape) == 2 and tokens == 1 else part.vectors
                    gallery.add_vectors(
                        ids=part.ids, vectors=vectors, metadata=part.metadata, sources=part.sources
                    )
            return cls.open(path, engine)
        except BaseException as error:
            tell_of(error, path, made)
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what is pickled for another process, open the same gallery again by its path."""
        if self._closed:
            raise GalleryError(f"{self.path}: this gallery is closed, so it cannot be copied; open it again")
        store = self._store
        state = (str(self.path), self._engine, store.read_only, store.wait, store.identity, self._expected)
        return _reopened, state

    # ---- writing

    def writing(self) -> AbstractContextManager[object]:
        """Stay the one writer for the length of a `with` block, over several commits.

        Raises:
            GalleryBusyError: somebody else is writing, and went on for longer than this may wait.
            GalleryError: the gallery is open read-only, closed, or exchanged.
        """
        return self._store.writing()

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
        checked_word("existing", existing, EXISTING)
        checked = checked_ids(ids)
        images = checked_column("images", taken(images, decode=False), len(checked), "images")
        data = checked_column("metadata", metadata, len(checked), "dictionaries or None")
        paths = (
            Path(plain_path(image)) if isinstance(image, (str, os.PathLike)) else None for image in images
        )
        sources = checked_sources(paths, checked)
        for item, entry in zip(checked, data, strict=True):
            meta.encode(entry, item)  # refused now, not after the images have been encoded
        return self._store.change(self._add, images, checked, data, sources, existing, batch_size)

    def _add(
        self,
        images: list[Any],
        ids: list[str],
        metadata: list[Any],
        sources: list[str | None],
        existing: Existing,
        batch_size: int,
    ) -> int:
        assert self._engine is not None
        held = held_ids(self._store, ids) if existing != "replace" else {}
        if held and existing == "error":
            raise already_held(self._store, held, ids)
        keep = [i for i, item in enumerate(ids) if item not in held]
        if not keep:
            return 0
        return self.add_vectors(
            ids=[ids[i] for i in keep],
            vectors=self._engine.encode_images([images[i] for i in keep], batch_size=batch_size),
            metadata=[metadata[i] for i in keep],
            sources=[sources[i] for i in keep],
            existing=existing,
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
            vectors: (n, D) finite numbers, none all zero; (n, M, D) in a gallery of M vectors an item.
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
        checked_word("existing", existing, EXISTING)
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
        return self._store.change(add_items, self._store, items, vectors, existing, self._check_encoding)

    def _check_encoding(self, encoding: tables.Encoding) -> None:
        if self._expected is not None:
            self._check(encoding.fingerprint, encoding.row_shape, self._expected, self._engine)

    def set_metadata(
        self,
        ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any] | None],
        *,
        merge: bool = False,
        missing: Missing = "error",
    ) -> int:
        """Give items other metadata, in one commit; their rows, sources and stamps stay as they are.

        What an item has otherwise is read in the same commit, so a change of somebody else is never undone,
        as it is by who reads an item, and adds it again later. The item counts as added anew: it comes
        last, and its row, written again, is buried where it was. Items that have this metadata already
        stay where they are.

        Args:
            ids: n distinct strings.
            metadata: n dictionaries of JSON values (or None for no metadata).
            merge: True keeps the fields of an item that its dictionary does not name, and takes away those
                that it names with None (fields at the top; a nested object is replaced whole).
            missing: what to do with an id that the gallery does not hold: "error" refuses the
                whole call, "skip" passes over it.

        Returns:
            How many items have other metadata than before.

        Raises:
            GalleryError: see `metadata.encode`; an id is not held; another writer; the disk is full or
                fails. The gallery is as it was before.
        """
        checked_flag("merge", merge)
        checked_word("missing", missing, MISSING)
        checked = checked_ids(ids)
        if metadata is None:
            raise UsageError("metadata is None; expected a list of dictionaries or None, one for each id")
        data = checked_column("metadata", metadata, len(checked), "dictionaries or None")
        given = [meta.encode(entry, item) for item, entry in zip(checked, data, strict=True)]
        return self._store.change(describe_items, self._store, checked, given, merge, missing)

    def remove(self, ids: Sequence[str], *, missing: Missing = "error") -> int:
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
        checked_word("missing", missing, MISSING)
        return self._store.change(remove_items, self._store, checked_ids(ids, ordered=False), missing)

    def retire(self, retired: bool = True) -> None:
        """Refuse every later change, whoever makes it, because other galleries took this one's place.

        It can be read and backed up as before.

        Args:
            retired: False allows changes again.

        Raises:
            GalleryError: another writer, or the disk is full or fails.
        """
        self._store.retire(retired)

    def compact(self) -> Compaction:
        """Drop all rows of removed and replaced items, and merge small segments, while others read.

        Every change does most of this by itself (docs/gallery.md, Compaction). Snapshots that are held keep
        showing what they showed; the space that they need is freed by the first commit or compaction after
        they are let go.

        Returns:
            What was done.

        Raises:
            GalleryError: another writer, or the disk is full or fails.
        """
        return compact(self._store)

    def upgrade(self, *, verify: bool = True) -> bool:
        """Bring a gallery of an earlier format to the newest, in one commit; the first change would, too.

        Args:
            verify: verify it before, so that no damage gets a checksum.

        Returns:
            False if there was nothing to do.

        Raises:
            GalleryError: it is damaged, another writer, or the disk is full or fails.
        """
        return self._store.change(self._upgrade, verify)

    def _upgrade(self, verify: bool) -> bool:
        if self.format_version >= PLAIN_VERSION:
            return False
        if verify and (problems := self.verify().problems):
            raise GalleryError(
                f"{self.path}: is damaged, so it is not upgraded ({problems[0]}); restore it from a copy"
            )
        self._store.commit(lambda _: None)
        return True

    def reencoding(self, engine: Engine, dtype: str | None = None) -> Reencoding:
        """Begin, or go on, to make all rows anew with another bundle (`cir-index --reencode` drives this).

        Args:
            engine: of the new bundle.
            dtype: of the new rows, by default that of the old ones.
        """
        from cir_infer.gallery.changes.reencoding import Reencoding

        if checked_engine(engine) is None:
            raise UsageError("engine is None; expected the Engine of the new bundle")
        dtype = self._store.catalogue.state().encoding.dtype if dtype is None else dtype
        check_row_type(dtype)
        return Reencoding(
            self._store, tables.Encoding(0, engine.fingerprint, engine.dimension, dtype, tokens_of(engine))
        )


def _reopened(
    path: str, engine: Engine | None, read_only: bool, wait: float, identity: str | None, name: str | None
) -> Gallery:
    gallery = Gallery.open(path, engine, read_only, wait, fingerprint=name)
    if gallery._store.identity != identity:
        gallery.close()
        raise GalleryError(f"{path}: is another gallery than the one that was copied; open it by its path")
    return gallery
