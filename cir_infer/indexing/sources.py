"""Where images come from: folders, glob patterns, manifests and tar shards, each as a stream of items.

Folders, shards and images may also lie in a store (`s3://bucket/photos`).

A source is chosen by what an argument names: a folder, a file ending in .csv, .tsv, .jsonl, .ndjson, .parquet
(a manifest) or in .tar (a shard), an image, else a pattern with `*`, `?`, `[` or `{`. `NAME=` before any of
them puts `NAME/` before its ids. Streams are in a fixed order and hold one item at a time, so a catalogue
of any size fits.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from cir_infer.errors import DatasetError, UsageError, shown
from cir_infer.extras import require
from cir_infer.indexing.formats import (
    HEIC_ENDINGS,
    IMAGE_ENDINGS,
    ending_of,
    file_looks_like_image,
)
from cir_infer.indexing.items import Broken, Item, Survey, Territory, file_item
from cir_infer.indexing.manifests import MANIFEST_ENDINGS, ManifestSource
from cir_infer.indexing.patterns import GlobSource, is_pattern
from cir_infer.indexing.source import Named, Source
from cir_infer.indexing.stores import StoreSource
from cir_infer.indexing.tars import TarSource
from cir_infer.indexing.walking import walk
from cir_infer.inputs.images import HEIC_REMEDY
from cir_infer.inputs.locations import absolute
from cir_infer.inputs.opening import why
from cir_infer.inputs.remote import checked_address, is_address, is_url, remote_status

__all__ = ["FileSource", "FolderSource", "GlobSource", "Prefixed", "open_source", "open_sources"]

_NAMED = re.compile(r"(?P<prefix>[\w.-]{1,64})=(?P<rest>.+)", re.DOTALL)
_KINDS = (
    "a folder, a pattern in quotes, a manifest (.csv, .tsv, .jsonl, .parquet), a shard (.tar), an image, or "
    "the address of a folder, shard or image (s3://bucket/photos)"
)


def open_sources(
    arguments: Sequence[str], suffixes: frozenset[str] = IMAGE_ENDINGS, prefix: str | None = None
) -> list[Source]:
    """The sources that command-line arguments name; images named one by one are one source.

    Beside other sources, a file that is none is left out and counted: `photos/*` names whatever lies there.

    Args:
        arguments: see `open_source`.
        suffixes: of the files in folders and shards that are images.
        prefix: put before the ids of every source that has none of its own.

    Raises:
        UsageError: see `open_source`.
        DatasetError: a store cannot be asked.
    """
    sources: list[Source] = []
    named: dict[str | None, FileSource] = {}
    unread: list[tuple[str, str]] = []
    for argument in arguments:
        own, rest = _split(argument)
        own = own or prefix
        kind = _kind(rest)
        if kind is None and is_url(rest):
            rest, kind = _in_store(rest)
        if kind is None and is_pattern(rest):
            sources.append(_prefixed(GlobSource(rest, suffixes), own))
        elif kind is None:
            expected = "a folder, a pattern in quotes, a manifest, a shard or an image"
            raise UsageError(f"{shown(rest)} does not exist; expected {expected}")
        elif kind == "folder in a store":
            sources.append(_prefixed(StoreSource(rest, suffixes), own))
        elif kind == "folder":
            sources.append(_prefixed(FolderSource(Path(rest), suffixes), own))
        elif (source := _of_file(rest, suffixes)) is not None:
            sources.append(_prefixed(source, own))
        elif kind == "unknown" or ending_of(rest) in suffixes or _is_image(rest):
            named.setdefault(own, FileSource()).paths.append(rest)
        else:
            unread.append((rest, ending_of(rest)))
    if unread and not sources and not named:
        raise _no_source(*unread[0])
    if unread:
        rest_of_them = next(iter(named.values()), None) or named.setdefault(None, FileSource())
        rest_of_them.others += [ending or "without an ending" for _, ending in unread]
    return [*sources, *(_prefixed(source, own) for own, source in named.items())]


def open_source(argument: str, suffixes: frozenset[str] = IMAGE_ENDINGS) -> Source:
    """The source that one command-line argument names.

    Args:
        argument: a folder, a pattern or a file, see above.
        suffixes: of the files in folders and shards that are images.

    Raises:
        UsageError: there is nothing of that name, or no source is made of it.
    """
    return open_sources([argument], suffixes)[0]


def _split(argument: str) -> tuple[str | None, str]:
    """The prefix of the ids, if any, and what is named; a path that is there is itself."""
    match = _NAMED.fullmatch(argument)
    if match is None or _kind(argument) is not None:
        return None, argument
    return match["prefix"], match["rest"]


def _kind(name: str) -> str | None:
    """What is there: "folder", "file", "unknown" (neither, or it cannot be examined), None for nothing."""
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116
        return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "unknown"
    except (FileNotFoundError, NotADirectoryError):
        return "unknown" if os.path.lexists(name) else None
    except OSError:
        return "unknown" if os.path.lexists(name) or not is_pattern(name) else None
    except ValueError as error:
        raise UsageError(f"{shown(name)}: not a usable path ({shown(error)})") from error


def _in_store(text: str) -> tuple[str, str]:
    """An address as it is spelled here, and what is there."""
    address = checked_address(text)
    require(f"reading {address}", "pyarrow")
    try:
        found = remote_status(address)
    except FileNotFoundError:
        raise UsageError(f"{address}: there is no such folder or object in the store") from None
    except OSError as error:
        raise DatasetError(
            f"{address}: the store cannot be asked ({why(error)}); see to the network, and to the settings "
            "of this machine that its own tools read too (AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, ...)"
        ) from error
    if not found.folder and ending_of(address) in MANIFEST_ENDINGS:
        raise UsageError(f"{address}: manifests are read from this machine; copy it here, with what it names")
    return address, "folder in a store" if found.folder else "file"


def _of_file(name: str, suffixes: frozenset[str]) -> Source | None:
    ending = ending_of(name)
    if ending in MANIFEST_ENDINGS:
        return ManifestSource(Path(name))
    if ending == ".tar":
        return TarSource(name, suffixes)
    return None


def _is_image(name: str) -> bool:
    return not ending_of(name) and file_looks_like_image(name)


def _no_source(name: str, ending: str) -> UsageError:
    remedy = f"; expected {_KINDS}"
    if ending in HEIC_ENDINGS:
        remedy = f"; {HEIC_REMEDY}"
    elif name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")):
        remedy = "; a compressed archive has no places to read from: unpack it, or make it a plain .tar"
    elif ending in (".json", ".txt", ".xlsx", ".xls"):
        remedy = "; write it as .csv, or as .jsonl with one object a line, with a column `image`"
    return UsageError(f"{shown(name)}: no source of images{remedy}")


def _prefixed(source: Source, prefix: str | None) -> Source:
    return source if prefix is None else Prefixed(source, prefix)


class Prefixed:
    """Another source whose ids all begin with a name and a slash."""

    def __init__(self, source: Source, prefix: str) -> None:
        self._source = source
        self._prefix = prefix.rstrip("/") + "/"

    @property
    def name(self) -> str:
        """That of the source."""
        return self._source.name

    @property
    def survey(self) -> Survey:
        """That of the source."""
        return self._source.survey

    @property
    def territory(self) -> Territory | None:
        """That of the source, with the ids that it has here."""
        inner, prefix = self._source.territory, self._prefix
        if inner is None:
            return None
        owns = inner.owns
        return Territory(
            inner.roots, lambda item, origin: item.startswith(prefix) and owns(item[len(prefix) :], origin)
        )

    def count(self) -> int | None:
        """How many items the source has."""
        return self._source.count()

    def items(self) -> Iterator[Item | Broken]:
        """The items of the source under their longer ids."""
        for entry in self._source.items():
            yield replace(entry, id=self._prefix + entry.id)


class FolderSource(Named):
    """Every image below a folder; ids are paths relative to it, with forward slashes.

    Links to files are followed, links to folders are not, so there are no cycles. Names that begin
    with a dot are left out. However the folder is spelled, sources are the paths below the folder itself.
    """

    def __init__(self, folder: Path, suffixes: frozenset[str] = IMAGE_ENDINGS) -> None:
        self._folder = os.path.realpath(folder)
        self._spelled = os.path.abspath(folder)  # noqa: PTH100
        self._suffixes = suffixes
        super().__init__(self._folder)

    @property
    def territory(self) -> Territory | None:
        """Items below the folder whose id is the rest of their path."""
        roots = tuple(dict.fromkeys(_with_slash(root) for root in (self._folder, self._spelled)))
        return Territory(roots, lambda item, origin: any(origin == root + item for root in roots))

    def count(self) -> int | None:
        """How many images lie below the folder now."""
        return sum(not isinstance(found, Broken) for found in walk(self._folder, self._suffixes, Survey()))

    def items(self) -> Iterator[Item | Broken]:
        """The images, folder by folder, in the order of their names.

        Raises:
            DatasetError: the folder itself cannot be listed.
        """
        self._survey.clear()
        root = _with_slash(self._folder)
        for found in walk(self._folder, self._suffixes, self._survey):
            if not isinstance(found, Broken):
                yield file_item(found.path[len(root) :], found.path, status=found.status)
            elif found.id == self._folder:
                raise DatasetError(found.reason)
            else:
                yield replace(found, id=found.id[len(root) :])


class FileSource(Named):
    """Images named one by one; ids are their paths as they were given, with forward slashes.

    Attributes:
        paths: the images.
        others: kinds of files that were named beside them and are left out.
    """

    def __init__(self, paths: Sequence[str] = ()) -> None:
        super().__init__("")  # it grows as images are named
        self.paths = list(paths)
        self.others: list[str] = []

    @property
    def name(self) -> str:
        """How many there are."""
        return f"{len(self.paths):,} images named one by one"

    def count(self) -> int | None:
        """How many files were named."""
        return len(self.paths)

    def items(self) -> Iterator[Item | Broken]:
        """The files in the order in which they were named."""
        self._survey.clear()
        for kind in self.others:
            self._survey.leave_out(kind)
        for path in self.paths:
            remote = is_address(path)
            yield file_item(
                unquote(path) if remote else Path(path).as_posix(), path if remote else absolute(path)
            )


def _with_slash(folder: str) -> str:
    return folder.rstrip(os.sep) + os.sep
