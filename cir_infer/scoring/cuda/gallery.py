"""Gallery rows where a GPU can read them: in its memory, in memory it shares, or streamed through it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError, ScoringError
from cir_infer.gpu.device import Device, HostMemory, Memory, Stream
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.cuda.arguments import QuantiseArguments, SurveyArguments

__all__ = ["Chunk", "CudaGallery", "Piece", "RowType"]

Placement = Literal["resident", "shared", "streamed"]

_VECTOR = 16
_LARGEST_SCALE = np.float32(1e36)
"""Beyond, an int8 row's values may leave float32 (kernels/score/cuda/exact_terms.cuh)."""
_RESERVE_BYTES = 256 << 20
"""Left free for the rest of the process when placement is chosen by what fits."""
_CHUNK_BYTES = 64 << 20
_SURVEY_BLOCKS = 512


MAX_ROWS = 2**32 - 2**20
"""Kernels count rows with 32 bits, and step beyond the last by up to a grid's stride."""


@dataclass(frozen=True)
class RowType:
    """How the kernels name and read a row type."""

    suffix: str
    itemsize: int
    steps: int
    """Matrix steps of 16 values in 64 bytes."""

    @property
    def width(self) -> int:
        """Values in 16 bytes."""
        return _VECTOR // self.itemsize


_ROW_TYPES = {
    np.dtype(np.float32): RowType("f32", 4, 1),
    np.dtype(np.float16): RowType("f16", 2, 2),
    np.dtype(np.int8): RowType("i8", 1, 4),
}


@dataclass(frozen=True)
class Piece:
    """Consecutive rows in one stretch of memory that kernels can read."""

    address: int
    first: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows that pass through GPU memory: copied from `source` to `address` before use."""

    source: npt.NDArray[np.uint8]
    address: int
    first: int
    count: int


@dataclass
class Shadow:
    """An int8 copy of the rows for the first pass of an exact search."""

    memory: Memory
    scales: Memory
    row_type: RowType
    vectors: int


@dataclass
class CudaGallery:
    """Rows on a device. Make one with `CudaGallery.of`.

    Rows are stored as they are, each padded with zeros to a multiple of 16 bytes; row r of the gallery
    is row r - piece.first of its piece.
    """

    device: Device
    row_type: RowType
    dimension: int
    count: int
    placement: Placement
    vectors: int
    stream: Stream
    """For what is prepared outside of any search. Never the default stream or the whole context: to wait for
    those breaks a capture in whichever thread."""
    pieces: tuple[Piece, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    shadow: Shadow | None = None
    product_scales: Memory | None = None
    """int8 rows: their scales, NaN where a scale is not finite."""
    ratio_scales: Memory | None = None
    """Set only where some scale is not ordinary, so that a ratio may change by it: NaN there, else 1."""
    largest_value: float = 0.0
    largest_norm: float = 0.0
    copy_stream: Stream = None
    _owned: list[Memory] = field(default_factory=list)

    @staticmethod
    def of(
        rows: Rows,
        device: Device,
        stream: Stream,
        budget: int | None = None,
        int8_shadow: bool = False,
        chunk_bytes: int = _CHUNK_BYTES,
    ) -> CudaGallery:
        """Bring rows to a device; inside `device.active()`.

        Args:
            rows: any `Rows` of at most `MAX_ROWS`.
            device: where to.
            stream: for copies and the first pass over the rows, and for what searches prepare.
            budget: GPU bytes that rows may take; None is what is free, less a reserve, and on an integrated
                GPU half of that. Rows beyond it stay in the host's memory, where an integrated GPU reads
                them in place; to others they are streamed.
            int8_shadow: also keep an int8 copy on the GPU, to be scanned first.
            chunk_bytes: size of the two buffers through which rows are streamed.

        Raises:
            ScoringError: too many rows, or a shadow of rows that are int8 already.
            DeviceError: not even the buffers or the shadow fit.
        """
        if rows.count > MAX_ROWS:
            raise ScoringError(
                f"{rows.count} rows; the CUDA scorer takes at most {MAX_ROWS}, split the gallery"
            )
        if int8_shadow and rows.dtype == np.int8:
            raise ScoringError("an int8 shadow of int8 rows; leave scan='stored'")
        row_type = _ROW_TYPES[rows.dtype]
        vectors = -(-rows.dimension * row_type.itemsize // _VECTOR)
        shadow_bytes = rows.count * -(-rows.dimension // _VECTOR) * _VECTOR if int8_shadow else 0
        room = (max(0, device.free_bytes() - _RESERVE_BYTES) if budget is None else budget) - shadow_bytes
        if room < 0:
            raise DeviceError(
                f"the int8 shadow of {rows.count} rows takes {shadow_bytes >> 20} MiB, more than "
                f"{device.name} has free; use scan='stored'"
            )
        # An integrated GPU caches its own memory; page-locked memory of the host it may read anew each time,
        # and a batch reads rows several times. A copy there lies beside the caller's rows, so unless a budget
        # says otherwise it leaves as much free as it takes.
        most = room // 2 if device.integrated and budget is None else room
        fits = rows.count * vectors * _VECTOR <= most
        placement: Placement = "resident" if fits else "shared" if device.integrated else "streamed"
        gallery = CudaGallery(device, row_type, rows.dimension, rows.count, placement, vectors, stream)
        try:
            gallery._bring(rows, stream, chunk_bytes, room, int8_shadow)
        except BaseException:
            gallery.close()
            raise
        return gallery

    def close(self) -> None:
        """Free everything; no search may be running. May be called twice."""
        while self._owned:
            self._owned.pop().free()

    @property
    def pitch(self) -> int:
        """Bytes of a stored row."""
        return self.vectors * _VECTOR

    def _own(self, nbytes: int) -> Memory:
        memory = self.device.allocate(max(nbytes, _VECTOR))
        self._owned.append(memory)
        return memory

    def _own_host(self, nbytes: int) -> HostMemory:
        memory = self.device.allocate_host(max(nbytes, _VECTOR))
        self._owned.append(memory)
        return memory

    def _bring(self, rows: Rows, stream: Stream, chunk_bytes: int, room: int, int8_shadow: bool) -> None:
        if self.count == 0:
            return
        if self.placement == "resident":
            self.pieces = self._to_device(rows, stream)
        elif self.placement == "shared":
            self.pieces = self._in_place(rows)
        else:
            host = self._to_host(rows.blocks)
            self.pieces = (Piece(host.address, 0, self.count),)
            if not int8_shadow:
                self._plan_chunks(host, min(chunk_bytes, room // 2))
        if rows.scales is not None:
            self._bring_scales(np.concatenate(rows.scales), stream)
        if int8_shadow:
            self._make_shadow(stream)
        if self.placement != "streamed" or int8_shadow:
            self._survey(stream)
        self.device.synchronize(stream)

    def _padded(self, block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """A block's bytes with rows of `pitch` bytes; a view where nothing has to be added."""
        plain = block.reshape(len(block), -1).view(np.uint8)
        if plain.shape[1] == self.pitch:
            return plain
        out = np.zeros((len(block), self.pitch), np.uint8)
        out[:, : plain.shape[1]] = plain
        return out

    def _to_device(self, rows: Rows, stream: Stream) -> tuple[Piece, ...]:
        memory = self._own(self.count * self.pitch)
        step = max(1, _CHUNK_BYTES // self.pitch)
        done = 0
        for block in rows.blocks:
            for start in range(0, len(block), step):
                part = self._padded(block[start : start + step])
                self.device.upload(memory.address + done * self.pitch, part, stream)
                self.device.synchronize(stream)  # `part` may be temporary
                done += len(part)
        return (Piece(memory.address, 0, self.count),)

    def _to_host(self, blocks: tuple[npt.NDArray[Any], ...]) -> HostMemory:
        count = sum(len(block) for block in blocks)
        memory = self._own_host(count * self.pitch)
        view = memory.array[: count * self.pitch].reshape(count, self.pitch)
        done, step = 0, max(1, _CHUNK_BYTES // self.pitch)
        for block in blocks:
            for start in range(0, len(block), step):
                part = self._padded(block[start : start + step])
                view[done : done + len(part)] = part
                done += len(part)
        return memory

    def _in_place(self, rows: Rows) -> tuple[Piece, ...]:
        pieces, first = [], 0
        for block in rows.blocks:
            if len(block) == 0:
                continue
            mapped: HostMemory | None = None
            # A row must start at a multiple of 16 bytes; where it does not, or the driver refuses memory
            # that it did not allocate (file mappings, on some), the rows are copied once.
            if block.shape[1] * block.itemsize == self.pitch and block.ctypes.data % _VECTOR == 0:
                mapped = self.device.map_host(block)
            if mapped is None:
                mapped = self._to_host((block,))
            else:
                self._owned.append(mapped)
            pieces.append(Piece(mapped.address, first, len(block)))
            first += len(block)
        return tuple(pieces)

    def _plan_chunks(self, host: HostMemory, chunk_bytes: int) -> None:
        length = chunk_bytes // self.pitch
        if length < 1:
            raise DeviceError(
                f"{self.device.name} has no room for two rows of {self.pitch} bytes; free GPU memory or "
                "raise the budget"
            )
        length = min(length, self.count)
        buffers = [self._own(length * self.pitch) for _ in range(2)]
        view = host.array[: self.count * self.pitch].reshape(self.count, self.pitch)
        self.chunks = tuple(
            Chunk(
                view[first : first + length], buffers[i % 2].address, first, min(length, self.count - first)
            )
            for i, first in enumerate(range(0, self.count, length))
        )
        self.copy_stream = self.device.new_stream()

    def _bring_scales(self, scales: npt.NDArray[np.float32], stream: Stream) -> None:
        usable = np.isfinite(scales)
        products = np.where(usable, scales, np.float32(np.nan)).astype(np.float32)
        self.product_scales = self._own(products.nbytes)
        self.device.upload(self.product_scales.address, products, stream)
        with np.errstate(invalid="ignore"):
            ordinary = (scales > 0) & (scales <= _LARGEST_SCALE)
        if not ordinary.all():
            marks = np.where(ordinary, np.float32(1), np.float32(np.nan))
            self.ratio_scales = self._own(marks.nbytes)
            self.device.upload(self.ratio_scales.address, marks, stream)
        self.device.synchronize(stream)

    def _make_shadow(self, stream: Stream) -> None:
        vectors = -(-self.dimension // _VECTOR)
        shadow = Shadow(
            self._own(self.count * vectors * _VECTOR),
            self._own(self.count * 4),
            _ROW_TYPES[np.dtype(np.int8)],
            vectors,
        )
        for piece in self.pieces:
            arguments = QuantiseArguments(
                piece.address,
                shadow.memory.address + piece.first * vectors * _VECTOR,
                shadow.scales.address + piece.first * 4,
                piece.count,
                self.vectors,
                vectors * _VECTOR,
            )
            blocks = min(_SURVEY_BLOCKS, -(-piece.count // 8))
            self.device.launch(f"quantise_{self.row_type.suffix}", (blocks, 1), 0, arguments, stream)
        self.shadow = shadow

    def _survey(self, stream: Stream) -> None:
        result = self._own(8)
        self.device.zero(result.address, 8, stream)
        if self.shadow is not None:
            suffix, vectors, scales = "i8", self.shadow.vectors, self.shadow.scales.address
            pieces: tuple[Piece, ...] = (Piece(self.shadow.memory.address, 0, self.count),)
        else:
            suffix, vectors, pieces = self.row_type.suffix, self.vectors, self.pieces
            scales = self.product_scales.address if self.product_scales is not None else 0
        for piece in pieces:
            arguments = SurveyArguments(
                piece.address,
                scales + piece.first * 4 if scales else 0,
                result.address,
                result.address + 4,
                piece.count,
                vectors,
            )
            blocks = min(_SURVEY_BLOCKS, -(-piece.count // 8))
            self.device.launch(f"survey_{suffix}", (blocks, 1), 0, arguments, stream)
        found = np.empty(2, np.float32)
        self.device.download(found, result.address, stream)
        self.largest_value, self.largest_norm = float(found[0]), float(found[1])
