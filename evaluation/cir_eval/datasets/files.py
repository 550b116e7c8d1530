"""Reading the published layouts: every missing or damaged file is a `DatasetError` that names it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import lines_in, read_json, text_of
from cir_infer.inputs.opening import why

__all__ = ["existing", "json_list", "json_object", "lines", "text_field"]


def existing(path: Path, what: str) -> Path:
    """The path, if it is there.

    Args:
        path: a file or folder.
        what: what it holds, for the message.
    """
    if not path.exists():
        raise DatasetError(f"{path} is missing; expected {what} in the published layout (docs/datasets.md)")
    return path


def lines(path: Path, what: str) -> Iterator[str]:
    """The lines of a text file that are not empty."""
    try:
        text = text_of(existing(path, what))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as text ({why(error)}); download it again") from error
    return (line for line in lines_in(text) if line.strip())


def json_list(path: Path, what: str) -> list[Any]:
    """A JSON file that holds a list."""
    content = _json(path, what)
    if not isinstance(content, list):
        raise DatasetError(f"{path} holds no list; expected {what}")
    return content


def json_object(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that holds an object."""
    content = _json(path, what)
    if not isinstance(content, dict):
        raise DatasetError(f"{path} holds no object; expected {what}")
    return content


def text_field(entry: Any, name: str, path: Path) -> str:
    """A field of an entry that must be a string."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, str):
        raise DatasetError(
            f"{path}: an entry has no text {shown(name)} but {shown(value)}; download the file again"
        )
    return value


def _json(path: Path, what: str) -> Any:
    try:
        return read_json(text_of(existing(path, what)))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({why(error)}); download it again") from error
