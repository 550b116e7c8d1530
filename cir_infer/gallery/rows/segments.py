"""A segment: the rows of one commit in one file, memory-mapped.

The file is a safetensors file (tensors.py), so any reader of that format opens it:

    rows            (n, D)  float32, float16 or int8; (n, M, D) where an item has M vectors
    scales          (n,)    float32, with int8 rows: row = int8 * scale; (n, M)
    keys            (n,)    int64 ascending, only where the keys of the rows are not consecutive
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import GalleryError
from cir_infer.gallery.disk.files import map_file
from cir_infer.gallery.disk.folder import ROWS, Folder
from cir_infer.gallery.rows.tensors import read_about_of, read_header, view

__all__ = ["CHUNK", "Segment", "SegmentEntry", "open_segment", "unpack_chunk"]

CHUNK = 32768
"""Keys whose burial is recorded in one blob of CHUNK / 8 bytes."""


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


@dataclass(frozen=True)
class Segment:
    """An open segment; the arrays are read-only views of the file.

    Attributes:
        entry: what the catalogue says of it.
        keys: int64 (n,) ascending, or None where they are first_key, first_key + 1, ...
        rows: (n, D) in the gallery's row type.
        scales: float32 (n,) for int8 rows.
        gallery: the identity of the gallery that wrote the file; a backup shares it. None of format 1.
    """

    entry: SegmentEntry
    keys: npt.NDArray[np.int64] | None
    rows: npt.NDArray[Any]
    scales: npt.NDArray[np.float32] | None
    gallery: str | None = None

    def all_keys(self) -> npt.NDArray[np.int64]:
        """The keys of all rows, int64 (n,)."""
        if self.keys is not None:
            return self.keys
        return np.arange(self.entry.first_key, self.entry.last_key + 1, dtype=np.int64)

    def keys_at(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The keys of the rows at some places."""
        return places + self.entry.first_key if self.keys is None else self.keys[places]

    def places(self, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The place of each key among the rows, -1 for those that are not here."""
        if self.keys is None:
            found = keys - self.entry.first_key
            return np.where((found >= 0) & (found < self.entry.rows), found, -1)
        found = np.searchsorted(self.keys, keys)
        inside = np.minimum(found, self.entry.rows - 1)
        return np.where(self.keys[inside] == keys, inside, -1)

    def buried(self, chunks: Mapping[int, bytes]) -> npt.NDArray[np.bool_]:
        """Which rows are buried, bool (n,).

        Args:
            chunks: bits by key // CHUNK, as in `State`. Chunks of keys that are not here cost little.
        """
        out = np.zeros(self.entry.rows, np.bool_)
        first, last = self.entry.first_key, self.entry.last_key
        for chunk in chunks:
            start = chunk * CHUNK
            if start > last or start + CHUNK <= first:
                continue
            flags = unpack_chunk(chunks[chunk])
            if self.keys is None:
                low, high = max(first, start), min(last + 1, start + CHUNK)
                out[low - first : high - first] = flags[low - start : high - start]
            else:
                part = slice(*np.searchsorted(self.keys, (start, start + CHUNK)))
                out[part] = flags[np.clip(self.keys[part] - start, 0, CHUNK - 1)]
        return out


def unpack_chunk(bits: bytes) -> npt.NDArray[np.bool_]:
    """The burial bits of CHUNK keys as truth values; missing bits are clear."""
    flags = np.zeros(CHUNK, np.bool_)
    known = np.unpackbits(np.frombuffer(bits[: CHUNK // 8], np.uint8), bitorder="little")
    flags[: len(known)] = known
    return flags


def open_segment(folder: Folder, entry: SegmentEntry, shape: tuple[int, ...], dtype: str) -> Segment:
    """Map a segment after checking that its header, size and the catalogue agree.

    The contents are not read; `Gallery.verify` compares checksums.

    Args:
        folder: the gallery.
        entry: what the catalogue says of it.
        shape: of a row, (D,) or (M, D).
        dtype: the row type.

    Raises:
        GalleryError: the file is missing, cut short, or not what the catalogue says.
    """
    path = f"{folder.path}/{ROWS}/{entry.name}"
    mapped = map_file(entry.name, folder.rows.fd, path)
    if len(mapped) != entry.bytes:
        raise GalleryError(
            f"{path}: found {len(mapped):,} bytes, the catalogue says {entry.bytes:,}; the file was cut or "
            "altered, restore the gallery from a copy"
        )
    expected: dict[str, tuple[str, tuple[int, ...]]] = {"rows": (dtype, (entry.rows, *shape))}
    if dtype == "int8":
        expected["scales"] = ("float32", (entry.rows, *shape[:-1]))
    if entry.last_key - entry.first_key + 1 != entry.rows:
        expected["keys"] = ("int64", (entry.rows,))
    try:
        found, about = read_header(mapped), read_about_of(mapped)
        for name, (kind, shape) in expected.items():
            info = found.get(name)
            if info is None or info.dtype != kind or info.shape != shape or info.start % info.dtype.itemsize:
                raise ValueError(f"expected {name} as aligned {kind} {shape}")
    except ValueError as error:
        raise GalleryError(
            f"{path}: not the segment that the catalogue describes ({error}); restore the gallery from a copy"
        ) from error
    arrays = {name: view(mapped, found[name]) for name in expected}
    keys = arrays.get("keys")
    if keys is not None and (keys[0] != entry.first_key or keys[-1] != entry.last_key):
        raise GalleryError(
            f"{path}: its keys are not those of the catalogue; restore the gallery from a copy"
        )
    return Segment(entry, keys, arrays["rows"], arrays.get("scales"), about.get("gallery"))
