"""What is open as an image: a file is read whole, in the thread of whoever passed it."""

from __future__ import annotations

import io
from typing import Any

from cir_infer.errors import ImageError, shown

__all__ = ["MOST_BYTES", "check_open", "contents", "is_open_file"]

MOST_BYTES = 1 << 29
"""The largest file that is read into memory, 512 MiB."""


def is_open_file(value: object) -> bool:
    """Whether something is read like a file: a `BytesIO`, an open file, a response."""
    return callable(getattr(value, "read", None)) and not isinstance(value, type)


def check_open(image: object, name: str) -> None:
    """Refuse a Pillow image or a view of bytes that was closed; a file is asked when it is read.

    Raises:
        ImageError: it is closed, which is no damage.
    """
    try:
        if isinstance(image, memoryview):
            len(image)  # which a released one does not tell
            return
        held = getattr(image, "__dict__", {})
        # Pillow 11 has other names. In the place of a closed one's pixels stands what only raises.
        pixels = held.get("_im", held.get("im"))
        if pixels is not None:
            closed = pixels.size is None
        else:  # not read yet, for which it needs its file
            closed = "fp" in held and (held["fp"] is None or getattr(held["fp"], "closed", False) is True)
    except ValueError:
        closed = True
    if closed:
        raise _closed(name)


def _closed(name: str) -> ImageError:
    return ImageError(f"{name} is closed; pass it before it is closed, or its path")


def contents(value: Any) -> Any:
    """The bytes of an open binary file; anything else as it is.

    A file that can be rewound is read from its beginning, wherever it stands, and stands there again
    afterwards; a stream is read to its end.

    Raises:
        ImageError: the file is closed, was opened as text or for writing, is too large, or fails.
    """
    if not is_open_file(value):
        return value
    name = _name(value)
    if isinstance(value, io.TextIOBase):
        raise ImageError(f'{name} was opened as text; open it with mode "rb"')
    try:
        data = _read(value)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if getattr(value, "closed", False) is True:
            raise _closed(name) from error
        raise ImageError(f"{name} cannot be read ({shown(error)}); open it for reading, as binary") from error
    if isinstance(data, str):
        raise ImageError(f'{name} was opened as text; open it with mode "rb"')
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ImageError(
            f"{name} gave {type(data).__name__} where bytes were expected; read it first and pass the bytes"
        )
    if len(data) > MOST_BYTES:
        raise ImageError(f"{name} has more than {MOST_BYTES:,} bytes; images of at most so many are read")
    return bytes(data)


def _read(file: Any) -> Any:
    seekable = getattr(file, "seekable", None)
    if not callable(seekable) or not seekable():
        return file.read(MOST_BYTES + 1)
    place = file.tell()
    try:
        file.seek(0)
        return file.read(MOST_BYTES + 1)
    finally:
        file.seek(place)


def _name(file: object) -> str:
    name = getattr(file, "name", None)
    return f"the file {shown(name)}" if isinstance(name, str) and name else f"the {type(file).__name__}"
