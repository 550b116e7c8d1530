"""An open gallery, as far as it is only read. What no query needs is imported by those that need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from cir_infer.bundle.orientation import orientation_of_rows
from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.gallery.arguments import (
    checked_engine,
    checked_fingerprint,
    checked_path,
    expected_fingerprint,
    named_ids,
    tokens_of,
)
from cir_infer.gallery.catalogue import tables
from cir_infer.gallery.catalogue.lineage import lineage
from cir_infer.gallery.catalogue.schema import stored_version
from cir_infer.gallery.disk.drafts import Made, tell_of
from cir_infer.gallery.rows.vectors import row_shape, shape_text
from cir_infer.gallery.snapshot import Snapshot
from cir_infer.gallery.store import Store
from cir_infer.inputs.arguments import checked_flag, checked_seconds

if TYPE_CHECKING:
    from cir_infer.engine import Engine
    from cir_infer.gallery.copies.backup import Backup
    from cir_infer.gallery.inspection.duplicates import Duplicates
    from cir_infer.gallery.inspection.fields import Field
    from cir_infer.gallery.inspection.verification import Verification

__all__ = ["WAIT", "Held", "OpenGallery"]

_READ = {True: "turned upright as their EXIF tag says", False: "read as their pixels lie"}
"""By whether they were turned."""

G = TypeVar("G", bound="OpenGallery")

_LOOK_UP = 8192

WAIT = 5.0
"""Seconds that a change waits for another writer."""


class Held(NamedTuple):
    """An item of the gallery, to whoever may replace it.

    Attributes:
        key: grows with every item added, replaced or told other metadata, and is never used twice.
        stamp: which version of its source it was made of, None where nobody said.
        source: where its image came from, None where nobody said.
    """

    key: int
    stamp: str | None
    source: str | None


class OpenGallery:
    """What `Gallery` has for reading."""

    def __init__(
        self,
        path: str | Path,
        engine: Engine | None = None,
        *,
        read_only: bool = False,
        wait: float = WAIT,
        fingerprint: str | None = None,
    ) -> None:
        checked_engine(engine)
        self._expected = expected_fingerprint(engine, fingerprint)
        place, read_only = checked_path("path", path), checked_flag("read_only", read_only)
        self._store = Store(place, read_only, checked_seconds("wait", wait))
        self._engine = engine
        self._closed = False

    def close(self) -> None:
        """Close the catalogue. Snapshots keep their rows, but can no longer look up items."""
        self._closed = True
        self._store.close()

    def __enter__(self: G) -> G:
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
        """D, the length of a row, or of each of its vectors."""
        return self.snapshot().dimension

    @property
    def tokens_per_item(self) -> int:
        """M, how many vectors an item has."""
        return self.snapshot().tokens_per_item

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
        shape = shape_text(self.tokens_per_item, self.dimension)
        return f"<Gallery {self.path}: {len(self):,} rows x {shape} {self.dtype}>"

    def check_engine(self, engine: Engine) -> None:
        """Raise `GalleryError` unless the engine's bundle is the one that encoded the rows.

        From then on `snapshot` makes the same check, so that a gallery that is changed over to
        another bundle under a running query service is noticed.
        """
        if checked_engine(engine) is None:
            raise UsageError("engine is None; expected the Engine that is to query or add")
        snapshot = self._store.snapshot()
        self._check(snapshot.fingerprint, snapshot.row_shape, engine.fingerprint, engine)
        self._engine, self._expected = engine, engine.fingerprint

    def check_fingerprint(self, fingerprint: str) -> None:
        """Raise `GalleryError` unless the rows are of the model with this fingerprint, or name.

        From then on `snapshot` makes the same check. A gallery of which nobody said the model passes.
        """
        expected = checked_fingerprint(fingerprint)
        if expected is None:
            raise UsageError("fingerprint is None; expected that of a bundle, or the name of a model")
        self._check(self._store.snapshot().fingerprint, (), expected, None)
        self._expected = expected

    def _check(
        self, found: str | None, shape: tuple[int, ...], expected: str | None, engine: Engine | None
    ) -> None:
        if found is None:
            if engine is not None and row_shape(tokens_of(engine), engine.dimension) != shape:
                raise GalleryError(
                    f"{self.path}: its rows have {' x '.join(map(str, shape))} dimensions, the bundle's "
                    f"{shape_text(tokens_of(engine), engine.dimension)}; use the bundle that made the rows"
                )
        elif found != expected and engine is not None:
            turned = orientation_of_rows(engine.manifest, found)
            if turned is not None:
                flag = "--exif-orientation" if turned else "--no-exif-orientation"
                raise GalleryError(
                    f"{self.path}: its photos were {_READ[turned]}, and the bundle is opened for photos "
                    f"{_READ[not turned]}; pass exif_orientation={turned} ({flag})"
                )
            raise GalleryError(self._other_bundle(found, shape, engine))
        elif found != expected:
            raise GalleryError(
                f"{self.path}: its rows are of the model {shown(found, 80)}, {shown(expected, 80)} was "
                "expected; vectors of two models cannot be compared, so use that model's gallery"
            )

    def _other_bundle(self, found: str, shape: tuple[int, ...], engine: Engine) -> str:
        from cir_infer.bundle.beside import bundle_beside, described

        path = Path(engine.path)
        made = bundle_beside(found, (path.parent, self.path.absolute().parent))
        known = "no bundle beside" if made is None else described(made.path, made.manifest)
        own = row_shape(tokens_of(engine), engine.dimension)
        shapes = [f", rows of {' x '.join(map(str, one))}" if own != shape else "" for one in (shape, own)]
        other = "the bundle that made them" if made is None else made.path.name
        return (
            f"{self.path}: its rows were encoded by bundle {shown(found, 80)}: {known}{shapes[0]}. "
            f"This bundle is {engine.fingerprint}: {described(path, engine.manifest)}{shapes[1]}. "
            f"Use {other}, or change the gallery over to this one with `cir-index --reencode`"
        )

    def snapshot(self) -> Snapshot:
        """The newest generation. The same object until there is a newer one.

        Raises:
            GalleryError: the gallery is damaged or closed.
        """
        snapshot = self._store.snapshot()
        if self._expected is not None and snapshot.fingerprint != self._expected:
            self._check(snapshot.fingerprint, snapshot.row_shape, self._expected, self._engine)
        return snapshot

    def backup(
        self, path: str | Path, *, verify: bool = True, link: bool = True, progress: bool = False
    ) -> Backup:
        """Make a backup, a gallery of its own, or bring an earlier one up to date; others go on meanwhile.

        Args:
            path: of the backup: nothing, an empty folder, or an earlier backup of this gallery.
            verify: verify the result, reading all of it.
            link: share row files by hard links where the file system allows; False copies them, so that a
                damaged disk sector does not hit both.
            progress: say how far it is: bars on a terminal, elsewhere log lines.

        Returns:
            What was done.

        Raises:
            GalleryError: something else is at the path; this gallery or the result is damaged; the backup
                is being written to, or a disk is full or fails. Nothing new is at the path then, and an
                earlier backup is as it was, but if it was brought up to date and does not verify.
        """
        from cir_infer.gallery.copies.backup import back_up

        checked_flag("verify", verify)
        place = checked_path("path", path)
        checked_flag("link", link)
        return back_up(
            self._store, place, verified=verify, link=link, progress=checked_flag("progress", progress)
        )

    def verify(self, *, progress: bool = False) -> Verification:
        """Read everything and check that it fits together: checksums, rows, items, filters.

        Args:
            progress: say how far it is: a bar on a terminal, elsewhere log lines.

        Returns:
            What was read, and every problem that was found.

        Raises:
            GalleryError: the gallery cannot be read at all.
        """
        from cir_infer.gallery.inspection.verification import verify

        return verify(self._store, progress=checked_flag("progress", progress))

    @property
    def uuid(self) -> str | None:
        """Which gallery this is, None in format 1. A copy of the folder has the same, a backup its own."""
        with self._store.catalogue.reading() as connection:
            return tables.identity(connection)

    @property
    def origin(self) -> str | None:
        """The `uuid` of the gallery that this is a backup of, None where it is none."""
        with self._store.catalogue.reading() as connection:
            found = lineage(connection)
        return None if found is None else found.origin

    @property
    def strayed(self) -> bool:
        """Whether this was a backup and somebody else has changed it since: it is a gallery of its own."""
        with self._store.catalogue.reading() as connection:
            found = lineage(connection)
        return found is not None and found.strayed

    @property
    def format_version(self) -> int:
        """The version of the format that its files have (docs/gallery.md)."""
        with self._store.catalogue.reading() as connection:
            return stored_version(connection)

    def fields(self) -> list[Field]:
        """The fields of the metadata: names, types, counts, ranges and examples; reads all of it.

        Raises:
            GalleryError: the gallery is damaged or closed.
        """
        from cir_infer.gallery.inspection.fields import fields_of

        return fields_of(self.snapshot())

    def duplicates(self, threshold: float = 0.99, *, progress: bool = False) -> list[Duplicates]:
        """Groups of items whose rows are alike: an exact scan of the gallery against itself.

        Args:
            threshold: the least cosine of a pair, to five decimals; above 0, at most 1.
            progress: say how far it is: a bar on a terminal, elsewhere log lines.

        Returns:
            Groups of two or more, each item alike to at least one other of its group.

        Raises:
            UsageError: the threshold is out of range.
            GalleryError: the gallery is damaged or closed.
        """
        from cir_infer.gallery.inspection.duplicates import duplicates_of

        return duplicates_of(self.snapshot(), threshold, progress=progress)

    def export(self, target: str | Path, *, overwrite: bool = False) -> None:
        """Write all items to a `.safetensors` file, or to a folder as clip-retrieval lays it out.

        Args:
            target: the file or folder; there whole, or not at all.
            overwrite: take the place of an earlier export; nothing else is ever replaced.

        Raises:
            GalleryError: the target exists or lies in the gallery, the disk is full, or pyarrow is missing
                (for folders).
            UsageError: the name says that it is a file of another kind.
        """
        from cir_infer.gallery.copies.transfer import export_rows

        place, overwrite = checked_path("target", target), checked_flag("overwrite", overwrite)
        self.check_outside(place, "an export")
        made: Made = []
        try:
            export_rows(self.snapshot(), place, made, overwrite)
        except BaseException as error:
            tell_of(error, place, made)
            raise

    # ---- for indexers and whoever writes beside it

    def check_outside(self, path: Path, what: str) -> None:
        """Raise `GalleryError` where a path is this gallery's folder or below it, where only it may write."""
        self._store.folder.check_outside(path, what)

    @property
    def next_key(self) -> int:
        """The key that the next item will get."""
        return self._store.catalogue.state().next_key

    def held(self, ids: Sequence[str]) -> dict[str, Held]:
        """What the catalogue has of those ids that the gallery holds.

        Raises:
            UsageError: they are no list of ids.
        """
        ids = named_ids("ids", ids)
        with self._store.catalogue.reading() as connection:
            keys = tables.live_keys(connection, ids)
        found = self._store.catalogue.columns(("stamp", "source"), list(keys.values()))
        if len(found) < len(keys):
            raise GalleryError(
                f"{self.path}: its index of ids is damaged; run verify, restore it from a copy"
            )
        return {item: Held(key, *found[key]) for item, key in keys.items()}

    def stamps(self) -> Iterator[tuple[int, str | None]]:
        """(key, stamp) of every live item, by ascending key."""
        snapshot = self.snapshot()
        rows = snapshot.live_rows()
        for start in range(0, len(rows), _LOOK_UP):
            keys = snapshot.keys(rows[start : start + _LOOK_UP]).tolist()
            found = self._store.catalogue.columns(("stamp",), keys)
            yield from ((key, found[key][0]) for key in keys if key in found)

    def stamps_of(self, keys: Sequence[int]) -> dict[int, str | None]:
        """The stamps of some keys, without those that are forgotten."""
        return {key: stamp for key, (stamp,) in self._store.catalogue.columns(("stamp",), keys).items()}

    def sources_of(self, keys: Sequence[int]) -> list[tuple[int, str, str | None]]:
        """(key, id, source) of some keys, without those that are forgotten."""
        found = self._store.catalogue.columns(("id", "source"), keys)
        return [(key, *found[key]) for key in keys if key in found]

    def items_from(self, root: str) -> list[tuple[str, int, str]]:
        """(id, key, source) of every item whose source begins with `root`."""
        snapshot = self.snapshot()
        found = self._store.catalogue.sourced(root)
        live = snapshot.holds(np.array([key for _, key, _ in found], np.int64))
        return [entry for entry, here in zip(found, live, strict=True) if here]
