"""Arrays in safetensors files: written in one pass, read where they lie, trusted in nothing.

The format: eight bytes with the length of a JSON header (little endian), the header, the tensors one
after the other. Ours start at multiples of 64 bytes: the header is padded with spaces, and where a
tensor's length would break the alignment, a tensor of bytes whose name begins with `_pad` fills the gap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.gallery.disk.files import NewFile

__all__ = ["Tensor", "TensorInfo", "read_about_of", "read_header", "view", "write_tensors"]

_ALIGN = 64
_MAX_HEADER = 1 << 20
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int8": "I8",
    "int64": "I64",
    "uint8": "U8",
}
_TYPES = {name: np.dtype(dtype).newbyteorder("<") for dtype, name in _NAMES.items()}


class Tensor(NamedTuple):
    """One array to be written, in pieces along its first axis so that it need not fit in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[npt.NDArray[Any]]


class TensorInfo(NamedTuple):
    """One array in a file: its type, its shape, and the byte at which it starts."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int


def write_tensors(
    path: Path | str,
    tensors: Sequence[Tensor],
    about: Mapping[str, str] | None = None,
    folder: int | None = None,
) -> tuple[int, str]:
    """Write and fsync a file; the caller syncs the folder.

    Args:
        path: does not exist yet.
        tensors: in this order.
        about: text that the header carries as `__metadata__`, at its beginning.
        folder: an open folder that the path is relative to.

    Returns:
        The size in bytes and the sha256 in hexadecimal.

    Raises:
        OSError: the disk is full or fails. The file may be left behind half written.
    """
    header: dict[str, Any] = {} if about is None else {"__metadata__": dict(about)}
    padding: list[int] = []
    offset = 0
    for index, tensor in enumerate(tensors):
        size = int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
        gap = -offset % _ALIGN if index + 1 < len(tensors) else 0
        if gap:
            header[f"_pad{index}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [offset, offset + gap]}
        offset += gap
        padding.append(gap)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    with NewFile(path, folder) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, gap in zip(tensors, padding, strict=True):
            for piece in tensor.pieces:
                file.write(np.ascontiguousarray(piece, np.dtype(tensor.dtype)))
            if gap:
                file.write(bytes(gap))
        checksum = file.sync()
        return file.bytes, checksum


def read_header(mapped: npt.NDArray[np.uint8]) -> dict[str, TensorInfo]:
    """The tensors of a file, without `_pad` ones and `__metadata__`.

    Raises:
        ValueError: the header is no such header, or a tensor does not lie inside the file.
    """
    header, end = _header(mapped)
    return {
        name: _info(name, entry, end, len(mapped))
        for name, entry in header.items()
        if not name.startswith("_")
    }


def read_about_of(mapped: npt.NDArray[np.uint8]) -> dict[str, str]:
    """The texts that the header carries as `__metadata__`.

    Raises:
        ValueError: the header is no such header.
    """
    about = _header(mapped)[0].get("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ValueError("its __metadata__ are no texts")
    return about


def _header(mapped: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], int]:
    """The header of a file, and where its tensors begin."""
    length = int.from_bytes(mapped[:8].tobytes(), "little")
    if len(mapped) < 8 or length > min(_MAX_HEADER, len(mapped) - 8):
        raise ValueError("its header is cut short or absurdly long")
    try:
        header = json.loads(mapped[8 : 8 + length].tobytes())
    except RecursionError:
        raise ValueError("its header is nested too deep") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length


def _info(name: str, entry: Any, base: int, end: int) -> TensorInfo:
    try:
        dtype, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
        first, last = entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name:.60} has a type or form that is not read here") from None
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in (*shape, first, last)):
        raise ValueError(f"{name:.60} has an impossible shape or place")
    size = dtype.itemsize
    for value in shape:
        size *= value
    if last - first != size or base + last > end:
        raise ValueError(f"{name:.60} does not lie inside the file")
    return TensorInfo(dtype, shape, base + first)


def view(mapped: npt.NDArray[np.uint8], info: TensorInfo) -> npt.NDArray[Any]:
    """A tensor as a read-only array over the mapped file."""
    count = int(np.prod(info.shape, dtype=np.int64))
    data = mapped[info.start : info.start + count * info.dtype.itemsize]
    return data.view(info.dtype).reshape(info.shape)
