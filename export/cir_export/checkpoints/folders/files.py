"""The small files of a model's folder: JSON, and what its model card says of licences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cir_infer.errors import CheckpointError, shown
from cir_infer.foreign import has_file, opened_file, read_json

__all__ = ["is_pointer", "json_of", "licence_of", "need_json", "within"]

_MAX_JSON = 16 << 20
_MAX_CARD = 64 << 10
_LONGEST_NAME = 255
"""Bytes that file systems take."""


_DEEPER = ("*", "snapshots/*")
"""Where a model lies in a folder of sentence-transformers, and in the Hub's cache."""


def json_of(folder: Path, name: str) -> dict[str, Any] | None:
    """The table of a JSON file; None where there is no such file.

    Raises:
        CheckpointError: it is none, a pointer of Git LFS, or holds something else.
    """
    path = folder / name
    if not has_file(path, CheckpointError):
        return None
    if path.stat().st_size > _MAX_JSON:
        raise CheckpointError(f"{path} has more than {_MAX_JSON >> 20} MB; that is no table of settings")
    if is_pointer(path):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS and not the file; run `git lfs pull` in {folder}"
        )
    try:
        content = read_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({shown(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds {shown(content)}; expected an object")
    return content


def need_json(folder: Path, name: str, why: str) -> dict[str, Any]:
    """As `json_of`, of a file that has to be there."""
    content = json_of(folder, name)
    if content is None:
        inner = [path.parent for place in _DEEPER for path in sorted(folder.glob(f"{place}/{name}"))]
        found = f"it holds {_listing(folder)}. Download the folder whole"
        if inner:
            found = f"{inner[0]} has one: give that"
        if len(inner) > 1:
            found = f"{inner[0]} has one, and {len(inner) - 1} more in it: give one of these"
        raise CheckpointError(f"{folder} has no {name}, {why}; {found}")
    return content


def is_pointer(path: Path) -> bool:
    """Whether a file stands for one that Git LFS did not fetch."""
    with opened_file(path) as file:
        return file.read(23) == b"version https://git-lfs"


def licence_of(folder: Path) -> str | None:
    """The licence that the head of the model card (README.md) states, None where it states none."""
    try:
        path = folder / "README.md"
        if not path.is_file():  # to open a pipe would wait for somebody who writes
            return None
        with path.open("rb") as file:
            card = file.read(_MAX_CARD).decode("utf-8", "replace")
    except OSError:
        return None
    head = re.match(r"\s*---\n(.*?)\n---", card.replace("\r\n", "\n"), re.DOTALL)
    if head is None:
        return None
    named = {key: re.search(rf"(?m)^{key}:[ \t]*([^\n]+)", head[1]) for key in ("license_name", "license")}
    found = named["license_name"] or named["license"]
    said = "" if found is None else "".join(filter(str.isprintable, found[1])).strip().strip("'\"")
    return said[:100] or None


def within(folder: Path, name: object, where: str) -> Path:
    """The file of a folder that an index names.

    Raises:
        CheckpointError: it is no plain file name.
    """
    plain = isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")
    if not isinstance(name, str) or not plain or len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise CheckpointError(f"{where} names the file {shown(name)}; expected a plain name in {folder}")
    return folder / name


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return shown(names) if names else "nothing"
