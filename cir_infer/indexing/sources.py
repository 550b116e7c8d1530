"""Where images come from: folders, glob patterns, manifests and tar shards, each as a stream of items.

A source is chosen by what an argument names: a folder, a pattern with `*`, `?` or `[`, a file
ending in .csv, .jsonl or .parquet (a manifest) or in .tar (a shard). Streams are in a fixed order
and hold one item at a time, so a catalogue of any size fits.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from cir_infer.errors import DatasetError, UsageError, shown
from cir_infer.indexing.items import Broken, Item, Territory, file_item
from cir_infer.indexing.manifests import ManifestSource
from cir_infer.indexing.tars import TarSource

__all__ = ["FileSource", "FolderSource", "GlobSource", "Source", "open_source", "open_sources"]

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
)
"""The files of a folder or shard that are taken for images; a manifest or pattern may name any."""


class Source(Protocol):
    """A stream of images with what is known about them."""

    @property
    def territory(self) -> Territory | None:
        """Which items of a gallery came from here, None if this cannot say what is no longer there."""
        ...

    def count(self) -> int | None:
        """How many items there will be, None where that is as costly as reading them."""
        ...

    def items(self) -> Iterator[Item | Broken]:
        """The items, in an order that does not change while the files do not."""
        ...


def open_sources(arguments: Sequence[str], suffixes: frozenset[str] = SUFFIXES) -> list[Source]:
    """The sources that command-line arguments name; images named one by one are one source.

    Raises:
        UsageError: see `open_source`.
    """
    images = [name for name in arguments if Path(name).suffix.lower() in suffixes and Path(name).is_file()]
    others = [open_source(name, suffixes) for name in arguments if name not in set(images)]
    return [*others, FileSource(images)] if images else others


def open_source(argument: str, suffixes: frozenset[str] = SUFFIXES) -> Source:
    """The source that a command-line argument names.

    Args:
        argument: a folder, a pattern or a file, see above.
        suffixes: of the files in folders and shards that are images.

    Raises:
        UsageError: there is nothing of that name, or no source is made of it.
    """
    path = Path(argument)
    try:
        if path.is_dir():
            return FolderSource(path, suffixes)
        if path.is_file():
            suffix = path.suffix.lower()
            if suffix in (".csv", ".jsonl", ".parquet"):
                return ManifestSource(path)
            if suffix == ".tar":
                return TarSource(path, suffixes)
            raise UsageError(
                f"{argument}: no source of images; expected a folder, a pattern in quotes, a manifest "
                "(.csv, .jsonl, .parquet) or a shard (.tar)"
            )
    except ValueError as error:
        raise UsageError(f"{shown(argument)}: not a usable path ({error})") from error
    if glob.has_magic(argument):
        return GlobSource(argument)
    raise UsageError(f"{argument}: no such folder or file")


class FolderSource:
    """Every image below a folder; ids are paths relative to it, with forward slashes.

    Links to files are followed, links to folders are not, so there are no cycles. Names that begin
    with a dot are left out.
    """

    def __init__(self, folder: Path, suffixes: frozenset[str] = SUFFIXES) -> None:
        self._folder = folder.absolute()
        self._suffixes = suffixes

    @property
    def territory(self) -> Territory | None:
        """Items below the folder whose id is the rest of their path."""
        root = str(self._folder).rstrip(os.sep) + os.sep
        return Territory(root, lambda item, origin: origin == root + item)

    def count(self) -> int | None:
        """How many images lie below the folder now."""
        return sum(isinstance(entry, str) for entry in self._entries(str(self._folder)))

    def items(self) -> Iterator[Item | Broken]:
        """The images, folder by folder, in the order of their names.

        Raises:
            DatasetError: the folder itself cannot be listed.
        """
        for entry in self._entries(str(self._folder)):
            if isinstance(entry, Broken):
                if entry.id == str(self._folder):
                    raise DatasetError(entry.reason)
                yield entry
            else:
                yield file_item(Path(entry).relative_to(self._folder).as_posix(), Path(entry))

    def _entries(self, folder: str) -> Iterator[str | Broken]:
        try:
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield Broken(folder, folder + os.sep, f"{folder}: cannot be listed ({error.strerror})")
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._entries(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in self._suffixes and entry.is_file():  # noqa: PTH122
                yield entry.path


class FileSource:
    """Images named one by one; ids are their paths as they were given, with forward slashes."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [Path(path) for path in paths]

    @property
    def territory(self) -> Territory | None:
        """None: nothing is known beyond the list."""
        return None

    def count(self) -> int | None:
        """How many files were named."""
        return len(self._paths)

    def items(self) -> Iterator[Item | Broken]:
        """The files in the order in which they were named."""
        for path in self._paths:
            yield file_item(path.as_posix(), path.absolute())


class GlobSource:
    """The files that match a pattern (`**` for any depth); ids are relative to its fixed part."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        self._base = Path(*parts[:fixed]).absolute()

    @property
    def territory(self) -> Territory | None:
        """None: other files may lie beside those that match."""
        return None

    def count(self) -> int | None:
        """How many files match now."""
        return sum(1 for _ in self._paths())

    def items(self) -> Iterator[Item | Broken]:
        """The files, in the order of their paths."""
        for path in self._paths():
            yield file_item(path.relative_to(self._base).as_posix(), path)

    def _paths(self) -> Iterator[Path]:
        for name in sorted(glob.glob(self._pattern, recursive=True)):  # noqa: PTH207
            path = Path(name).absolute()
            if path.is_file():
                yield path
