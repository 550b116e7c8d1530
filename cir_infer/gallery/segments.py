"""A segment: the rows of one commit in one file, memory-mapped.

The file is a safetensors file, so any reader of that format opens it: eight bytes with the length
of a JSON header (little endian), the header, the tensors. The header is padded with spaces so
that every tensor starts at a multiple of 64 bytes; where a tensor's length would break that, a
`_pad` tensor of bytes fills the gap. Tensors:

    rows            (n, D)  float32, float16 or int8
    scales          (n,)    float32, with int8 rows: row = int8 * scale
    coarse          (n, D)  int8, optional quick copy of the rows
    coarse_scales   (n,)    float32, with coarse
    keys            (n,)    int64 ascending, only where the keys of the rows are not consecutive
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError
from cir_infer.gallery.files import NewFile, map_file

__all__ = ["Segment", "SegmentEntry", "Tensor", "open_segment", "write_segment"]

_ALIGN = 64
_MAX_HEADER = 1 << 16
_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8", "int64": "I64", "uint8": "U8"}
_TYPES = {name: np.dtype(dtype) for dtype, name in _NAMES.items()}


class SegmentEntry(NamedTuple):
    """What the catalogue knows of a segment.

    Attributes:
        number: the file's number, never used twice.
        first_key: the smallest item key in it.
        last_key: the largest item key in it.
        rows: n, how many rows it holds.
        bytes: the size of the file.
        sha256: of the whole file, hexadecimal.
    """

    number: int
    first_key: int
    last_key: int
    rows: int
    bytes: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name inside the folder of rows."""
        return f"{self.number:010d}.safetensors"


class Tensor(NamedTuple):
    """One array to be written, in pieces along its first axis so that it need not fit in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[npt.NDArray[Any]]


@dataclass(frozen=True)
class Segment:
    """An open segment; the arrays are read-only views of the file.

    Attributes:
        entry: what the catalogue says of it.
        keys: int64 (n,) ascending, or None where they are first_key, first_key + 1, ...
        rows: (n, D) in the gallery's row type.
        scales: float32 (n,) for int8 rows.
        coarse: int8 (n, D) or None.
        coarse_scales: float32 (n,) or None.
    """

    entry: SegmentEntry
    keys: npt.NDArray[np.int64] | None
    rows: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None
    coarse: npt.NDArray[np.int8] | None
    coarse_scales: npt.NDArray[np.float32] | None

    def all_keys(self) -> npt.NDArray[np.int64]:
        """The keys of all rows, int64 (n,)."""
        if self.keys is not None:
            return self.keys
        return np.arange(self.entry.first_key, self.entry.last_key + 1, dtype=np.int64)

    def by_key(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Of an array indexed by key, the part that belongs to these rows, in their order."""
        if self.keys is not None:
            return values[self.keys]
        return values[self.entry.first_key : self.entry.last_key + 1]


def write_segment(path: Path, tensors: Sequence[Tensor]) -> tuple[int, str]:
    """Write and fsync a segment file; the caller syncs the folder.

    Returns:
        The size in bytes and the sha256 in hexadecimal.

    Raises:
        OSError: the disk is full or fails. The file may be left behind half written.
    """
    header: dict[str, Any] = {}
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
    with NewFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, gap in zip(tensors, padding, strict=True):
            for piece in tensor.pieces:
                file.write(np.ascontiguousarray(piece, np.dtype(tensor.dtype)))
            if gap:
                file.write(bytes(gap))
        checksum = file.sync()
        return file.bytes, checksum


def open_segment(folder: Path, entry: SegmentEntry, dimension: int, dtype: str, coarse: bool) -> Segment:
    """Map a segment after checking that its header, size and the catalogue agree.

    The contents are not read; `Gallery.verify` compares checksums.

    Raises:
        GalleryError: the file is missing, cut short, or not what the catalogue says.
    """
    path = folder / entry.name
    mapped = map_file(path)
    if len(mapped) != entry.bytes:
        raise GalleryError(
            f"{path}: found {len(mapped)} bytes, the catalogue says {entry.bytes}; the file was cut or "
            "altered, restore the gallery from a copy"
        )
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"rows": (dtype, (entry.rows, dimension))}
    if dtype == "int8":
        expected["scales"] = ("float32", (entry.rows,))
    if coarse:
        expected["coarse"] = ("int8", (entry.rows, dimension))
        expected["coarse_scales"] = ("float32", (entry.rows,))
    if entry.last_key - entry.first_key + 1 != entry.rows:
        expected["keys"] = ("int64", (entry.rows,))
    try:
        arrays = _read_tensors(mapped, expected)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GalleryError(
            f"{path}: not the segment that the catalogue describes ({error}); restore the gallery from a copy"
        ) from error
    keys = arrays.get("keys")
    if keys is not None and (keys[0] != entry.first_key or keys[-1] != entry.last_key):
        raise GalleryError(
            f"{path}: its keys are not those of the catalogue; restore the gallery from a copy"
        )
    return Segment(
        entry, keys, arrays["rows"], arrays.get("scales"), arrays.get("coarse"), arrays.get("coarse_scales")
    )


def _read_tensors(
    mapped: Any, expected: dict[str, tuple[str, tuple[int, ...]]]
) -> dict[str, npt.NDArray[Any]]:
    length = int.from_bytes(mapped[:8], "little")
    if len(mapped) < 8 or length > min(_MAX_HEADER, len(mapped) - 8):
        raise ValueError("its header is cut short or absurdly long")
    header = json.loads(mapped[8 : 8 + length])
    if not isinstance(header, dict) or {name for name in header if not name.startswith("_")} != set(expected):
        raise ValueError(f"expected the tensors {', '.join(expected)}")
    arrays = {}
    for name, (dtype, shape) in expected.items():
        found = header[name]
        start, end = (int(value) for value in found["data_offsets"])
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if found["dtype"] != _NAMES[dtype] or tuple(found["shape"]) != shape:
            raise ValueError(f"{name} is {found['dtype']} {found['shape']}, expected {dtype} {shape}")
        at = 8 + length + start
        if start < 0 or end - start != size or at + size > len(mapped) or at % np.dtype(dtype).itemsize:
            raise ValueError(f"{name} does not lie inside the file")
        count = size // np.dtype(dtype).itemsize
        arrays[name] = np.frombuffer(mapped, np.dtype(dtype), count, at).reshape(shape)
    return arrays
