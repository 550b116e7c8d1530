"""`shards.json`: which galleries a sharded gallery is made of, read strictly and replaced at once."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.errors import GalleryError, UsageError, shown
from cir_infer.foreign import read_json, unique_names
from cir_infer.gallery.arguments import checked_fingerprint, checked_path
from cir_infer.gallery.disk import files
from cir_infer.gallery.rows.vectors import check_shape
from cir_infer.processes.folders import sync_folder

__all__ = ["FILE", "MOST_SHARDS", "NAME", "Listing", "is_sharded", "read_listing"]

FILE = "shards.json"
MOST_SHARDS = 256
_FORMAT, _VERSION = "cir-shards", 2
_MOST_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_FIELDS = ("format", "version", "rule", "fingerprint", "dimension", "tokens_per_item", "shards")


class Listing(NamedTuple):
    """What `shards.json` says.

    Attributes:
        fingerprint: of the bundle or model that made the rows, None where nobody said.
        dimension: D.
        tokens_per_item: M.
        shards: the names of the galleries' folders, in order.
        bundle: the path of the bundle, None where nobody said. Version 2 of the format has it.
    """

    fingerprint: str | None
    dimension: int
    tokens_per_item: int
    shards: tuple[str, ...]
    bundle: str | None = None

    def write(self, folder: Path, name: str = FILE) -> None:
        """Write it into a folder, in place of what is there: whole, durable, at once.

        Raises:
            GalleryError: the disk is full or fails.
        """
        said = {
            "format": _FORMAT,
            "version": 1 if self.bundle is None else 2,  # what older releases read, where it can be said so
            "rule": f"sha256 mod {len(self.shards)}",
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "tokens_per_item": self.tokens_per_item,
            "shards": list(self.shards),
        }
        if self.bundle is not None:
            said["bundle"] = self.bundle
        place = folder / name
        draft = folder / f".{name}.draft"
        with files.told_as_gallery_error("writing", place):
            with draft.open("w", encoding="utf-8") as file:
                file.write(json.dumps(said, indent=1))
                file.flush()
                os.fsync(file.fileno())
            draft.replace(place)
            sync_folder(folder)


def is_sharded(folder: Path) -> bool:
    """Whether a folder is that of a sharded gallery, and not of an ordinary one."""
    return (folder / FILE).is_file()


def read_listing(path: Path, name: str = FILE) -> Listing:
    """What the `shards.json` of a folder says.

    Raises:
        GalleryError: there is none, or it is damaged or of a newer format.
    """
    place = path / name
    try:
        read = _content(place)
        if read is None:
            raise GalleryError(
                f"{path}: has no {name}, so it is no sharded gallery; make one with `cir-gallery shard`"
            )
        if len(read) > _MOST_BYTES:
            raise GalleryError(f"{place}: is absurdly long; restore it from a copy")
        said = read_json(read, object_pairs_hook=unique_names)
    except OSError as error:
        raise GalleryError(
            f"{shown(str(place))}: cannot be read ({error.strerror or error}); see to the disk and the rights"
        ) from error
    except (ValueError, RecursionError) as error:
        raise GalleryError(f"{place}: cannot be read ({shown(error)}); restore it from a copy") from error
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        raise GalleryError(f'{place}: does not say "format": "{_FORMAT}"; restore it from a copy')
    version = said.get("version")
    if type(version) is int and version > _VERSION:
        raise GalleryError(
            f"{place}: found format {shown(version, 20)}, this version reads {_VERSION}; upgrade cir-infer"
        )
    fault = _fault(said)
    if fault is not None:
        raise GalleryError(f"{place}: {fault}; restore it from a copy")
    return Listing(
        said["fingerprint"],
        said["dimension"],
        said["tokens_per_item"],
        tuple(said["shards"]),
        said.get("bundle"),
    )


def _content(place: Path) -> bytes | None:
    """What a file begins with, a little more than may be in it; None where there is no such file."""
    try:
        with open(place, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            return file.read(_MOST_BYTES + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR):
            return None
        raise


def _fault(said: dict[str, Any]) -> str | None:
    """What is wrong with the fields of `shards.json`, None for nothing."""
    listed = said.get("shards")
    names: list[Any] = listed if isinstance(listed, list) else []
    expected = [*_FIELDS, "bundle"] if said.get("version") == _VERSION else list(_FIELDS)
    if sorted(said) != sorted(expected) or said["version"] not in (1, _VERSION):
        return f"its fields are {shown(sorted(said), 200)}; expected {sorted(expected)}"
    if not 1 <= len(names) <= MOST_SHARDS:
        return f"it names {len(names):,} shards; expected 1 to {MOST_SHARDS}"
    wrong = [name for name in names if not isinstance(name, str) or not NAME.fullmatch(name)]
    if wrong:
        return f"a shard is {shown(wrong[0], 60)}; expected the name of a folder beside it"
    if len(set(names)) != len(names):
        return "it names a shard twice; expected different ones"
    if said["rule"] != f"sha256 mod {len(names)}":
        return f"its rule is {shown(said['rule'], 60)}; expected sha256 mod {len(names)}"
    numbers = (said["dimension"], said["tokens_per_item"])
    try:
        if not all(type(number) is int for number in numbers):
            raise UsageError(f"a row is {shown(numbers)}")
        check_shape(numbers[1], numbers[0])
        checked_fingerprint(said["fingerprint"])
        if "bundle" in said:
            checked_path("bundle", said["bundle"])
    except UsageError as error:
        return str(error)
    return None
