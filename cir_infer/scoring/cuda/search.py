"""One shape of query on one gallery: its buffers, and the launches that answer it."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from cir_infer.gpu.device import HostMemory, Memory, Stream
from cir_infer.scoring.contract import QueryTerms, TopK
from cir_infer.scoring.cuda.arguments import (
    BELOW,
    FINISH,
    LOOSE,
    MAX_FUSED_K,
    PACK_SHARED_BYTES,
    RESCUE,
    ROWS_OF_ROUND,
    SCAN_SHARED_BYTES,
    SPARE_KEYS,
    PackArguments,
    ScanArguments,
    Segment,
    ShortlistArguments,
)
from cir_infer.scoring.cuda.gallery import Chunk, CudaGallery
from cir_infer.scoring.cuda.shapes import (
    WARPS,
    Launch,
    ShortlistShape,
    Span,
    first_rows,
    list_capacity,
    most_blocks,
    row_scale,
    scan_kernel,
    scanned,
    shared_out,
    shortlist_shape,
    stage_growth,
)
from cir_infer.scoring.cuda.tuning import Tuning

__all__ = ["CudaSearch"]

_LISTED_OF_BLOCK = 1024
"""Rows of the longest list that a block scores: several runs even of a short one, between which blocks hear
of one another."""


class CudaSearch:
    """Q queries of J terms for the k best rows, prepared once and launched as often as wanted.

    `launch` only enqueues kernels (and, for streamed galleries, copies), always the same ones in the same
    order with the same arguments, so a caller may capture it into a CUDA graph. It reads the terms from
    `numerators` and `weights`, float32 (Q, J, D) in GPU memory, and the mask from `allow`; the caller fills
    them on the stream, or lets `upload` do it. The kernels leave all state clean; where one launch failed or
    was interrupted before the last of them, the next one clears it.

    A search belongs to one stream at a time; searches of a streamed gallery share its two buffers, so they
    must not overlap either. Make one with `CudaScorer.prepare`.

    Attributes:
        numerators: address of float32 (Q, J, D).
        weights: address of float32 (Q, J, D), 0 without weights.
        allow: address of the row mask, 0 without one.
        batched: whether it goes through the tensor cores or an int8 shadow first.
    """

    def __init__(
        self,
        gallery: CudaGallery,
        tuning: Tuning,
        queries: int,
        term_count: int,
        weighted: bool,
        k: int,
        masked: bool,
    ) -> None:
        self._gallery = gallery
        self._tuning = tuning
        self._device = gallery.device
        self._queries = queries
        self._term_count = term_count
        self._weighted = weighted
        self._k = k
        self._found = min(k, gallery.count)  # more rows than there are need no pass
        self._owned: list[Memory] = []
        self._launches: list[Launch | Chunk] = []
        self._zeroed: list[tuple[int, int]] = []  # what must be 0 before a search, and its bytes
        self._unfinished = False
        values = queries * term_count * gallery.dimension * 4
        try:
            self.numerators = self._own(values).address
            self.weights = self._own(values).address if weighted else 0
            self.allow = self._own(math.ceil(gallery.count / 8)).address if masked else 0
            self._staging = self._own_host(2 * values + math.ceil(gallery.count / 8))
            self._rows, self._scores, self._terms = self._answer_memory()
            self.batched = self._may_batch()
            self._plan()
        except BaseException:
            self.close()
            raise

    # ---- use ----

    def upload(self, terms: QueryTerms, allow: np.ndarray[Any, Any] | None, stream: Stream) -> None:
        """Enqueue the copies of terms and mask; their shapes must be those of this search."""
        parts = [(self.numerators, terms.numerators)]
        if self.weights:
            assert terms.weights is not None
            parts.append((self.weights, terms.weights))
        if self.allow:
            assert allow is not None
            parts.append((self.allow, allow))
        at = 0
        for address, array in parts:
            staged = self._staging.array[at : at + array.nbytes]
            staged[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._device.upload(address, staged, stream)
            at += array.nbytes

    def launch(self, stream: Stream) -> None:
        """Enqueue the search; inside `device.active()`."""
        device = self._device
        copy_stream = self._gallery.copy_stream
        consumed: dict[int, Any] = {}
        chunk: Chunk | None = None
        if self._unfinished:
            # Floors and counts of another query would keep rows out of this one's answer.
            for address, nbytes in self._zeroed:
                device.zero(address, nbytes, stream)
        self._unfinished = True
        if self._gallery.chunks:
            # An earlier launch may still read the buffers; and a capture must see where copies branch off.
            device.wait(copy_stream, device.record(stream))
        for step in self._launches:
            if isinstance(step, Chunk):
                if chunk is not None:
                    consumed[chunk.address] = device.record(stream)
                chunk = step
                if step.address in consumed:
                    device.wait(copy_stream, consumed[step.address])
                device.upload(step.address, step.source, copy_stream)
                device.wait(stream, device.record(copy_stream))
            else:
                device.launch(step.kernel, step.grid, step.shared_bytes, step.arguments, stream)
        self._unfinished = False

    def result(self) -> TopK:
        """The answer as new arrays, once the stream has been waited for."""
        return TopK(self._scores.copy(), self._rows.copy(), self._terms.copy()).widened(self._k)

    @property
    def rescued(self) -> int:
        """Queries so far whose list of candidates overflowed, so that all rows were scored exactly."""
        return int(self._rescued.array[:4].view(np.uint32)[0])

    def close(self) -> None:
        """Free the buffers; no launch may be under way. May be called twice."""
        while self._owned:
            self._owned.pop().free()

    # ---- buffers ----

    def _own(self, nbytes: int) -> Memory:
        memory = self._device.allocate(max(nbytes, 16))
        self._owned.append(memory)
        return memory

    def _own_host(self, nbytes: int) -> HostMemory:
        memory = self._device.allocate_host(max(nbytes, 16))
        self._owned.append(memory)
        return memory

    def _own_zeros(self, nbytes: int) -> int:
        address, nbytes = self._own(nbytes).address, max(nbytes, 16)
        self._device.zero(address, nbytes, self._gallery.stream)
        self._device.synchronize(self._gallery.stream)
        self._zeroed.append((address, nbytes))
        return address

    def _answer_memory(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Host memory that the kernels write the answer into: nothing has to be copied back."""
        q, k, j = self._queries, self._found, self._term_count
        self._answer = self._own_host(q * k * (8 + 4 + 4 * j))
        edges = np.cumsum([0, q * k * 8, q * k * 4, q * k * j * 4])
        rows, scores, terms = (self._answer.array[a:b] for a, b in itertools.pairwise(edges))
        self._answer_offsets = edges
        return (
            rows.view(np.int64).reshape(q, k),
            scores.view(np.float32).reshape(q, k),
            terms.view(np.float32).reshape(q, k, j),
        )

    # ---- planning ----

    def _may_batch(self) -> bool:
        gallery, tuning = self._gallery, self._tuning
        if gallery.chunks or self._k > MAX_FUSED_K or (self._weighted and self._term_count > 2):
            return False
        if gallery.count < tuning.rows or gallery.count <= first_rows(tuning, self._queries, self._found):
            return False
        least = tuning.queries
        if gallery.row_type.suffix == "i8" and gallery.count >= tuning.int8_rows:
            least = least if tuning.int8_queries is None else tuning.int8_queries
        return (gallery.shadow is not None or self._queries >= least) and self._shape() is not None

    @property
    def _tiles(self) -> int:
        return 2 * self._term_count if self._weighted else 1

    def _shape(self) -> ShortlistShape | None:
        steps = scanned(self._gallery)[2]
        return shortlist_shape(self._device.shared_bytes, self._queries, self._tiles, steps)

    def _plan(self) -> None:
        gallery = self._gallery
        if gallery.count == 0 or self._queries == 0:
            return
        blocks = self._most_blocks = most_blocks(self._device.multiprocessors, self._queries)
        most = min(self._found, MAX_FUSED_K)
        self._key_capacity = most + blocks * (most + SPARE_KEYS)
        q = self._queries
        self._keys = self._own(q * self._key_capacity * 8).address
        self._key_terms = self._own(q * self._key_capacity * 4 * self._term_count).address
        self._state = {
            "key_counts": self._own_zeros(4 * q),
            "tickets": self._own_zeros(4 * q),
            "floors": self._own_zeros(8 * q),
            "ceilings": self._own_zeros(8 * q),
            "slacks": self._own_zeros(4 * q),
            "peaks": self._own_zeros(8 * q * blocks),
        }
        # Page-locked, so that it can be read without a copy.
        self._rescued = self._own_host(4)
        self._rescued.array[:] = 0
        if self.batched:
            self._plan_batch()
        else:
            self._plan_exact()

    def _segments(self, spans: list[Span]) -> tuple[int, int]:
        """The table that scans look rows up in: all of the gallery, then the spans. Address, lookup count."""
        gallery = self._gallery
        lookups = [self._span(p.address, p.first, p.count, 0) for p in gallery.pieces]
        table = (Segment * (len(lookups) + len(spans)))()
        for i, span in enumerate([*lookups, *spans]):
            table[i] = Segment(span.address, span.scales, span.first, span.count)
        memory = self._own(ctypes.sizeof(table))
        self._device.upload(memory.address, np.frombuffer(bytes(table), np.uint8), self._gallery.stream)
        self._device.synchronize(self._gallery.stream)
        return memory.address, len(lookups)

    def _span(self, piece_address: int, piece_first: int, count: int, offset: int) -> Span:
        first = piece_first + offset
        return Span(piece_address + offset * self._gallery.pitch, self._scales_of(first), first, count)

    def _scales_of(self, first: int) -> int:
        scales = self._gallery.product_scales
        return scales.address + first * 4 if scales is not None else 0

    def _spans(self, start: int, stop: int) -> Iterator[Span]:
        """The stored rows [start, stop), piece by piece."""
        for piece in self._gallery.pieces:
            a, b = max(start, piece.first), min(stop, piece.first + piece.count)
            if a < b:
                yield self._span(piece.address, piece.first, b - a, a - piece.first)

    def _scan(
        self, table: tuple[int, int], segment: int, count: int, k: int, done: int, flags: int
    ) -> Launch:
        """The exact kernel over one segment, or with `count` 0 over the lists."""
        gallery = self._gallery
        kernel, in_shared = scan_kernel(gallery, self._device.shared_bytes, self._term_count, self._weighted)
        buffer = 1024 if k <= 512 else 2048
        most = self._most_blocks
        if count:
            run, blocks = shared_out(count, most)
        else:
            run = ROWS_OF_ROUND
            blocks = min(most, -(-self._capacity // _LISTED_OF_BLOCK))
        rows, scores, terms = (self._answer.address + int(offset) for offset in self._answer_offsets[:3])
        arguments = ScanArguments(
            segments=table[0],
            numerators=self.numerators,
            weights=self.weights,
            allow=self.allow,
            rescued=self._rescued.address,
            keys=self._keys,
            key_terms=self._key_terms,
            **self._state,
            scores=scores + done * 4,
            rows=rows + done * 8,
            terms=terms + done * 4 * self._term_count,
            segment=segment,
            segment_count=table[1],
            dimension=gallery.dimension,
            vectors=gallery.vectors,
            term_count=self._term_count,
            k=k,
            out_stride=self._found,
            key_capacity=self._key_capacity,
            buffer=buffer,
            run=run,
            flags=flags,
        )
        if self.batched:
            arguments.overflowed = self._overflowed
            arguments.list_counts = self._list_counts
            arguments.list_capacity = self._capacity
            if not count:
                arguments.lists = self._lists
        return Launch(kernel, (blocks, self._queries), SCAN_SHARED_BYTES + buffer * 8 + in_shared, arguments)

    def _plan_exact(self) -> None:
        """One launch for one piece and k up to 1,024; else one for each piece and each 1,024 of k."""
        gallery = self._gallery
        spans = (
            [self._chunk_span(chunk) for chunk in gallery.chunks]
            if gallery.chunks
            else list(self._spans(0, gallery.count))
        )
        table = self._segments(spans)
        for done in range(0, self._found, MAX_FUSED_K):
            k = min(MAX_FUSED_K, self._found - done)
            for i, span in enumerate(spans):
                flags = (FINISH if i == len(spans) - 1 else 0) | (BELOW if done else 0)
                if gallery.chunks:
                    self._launches.append(gallery.chunks[i])
                self._launches.append(self._scan(table, table[1] + i, span.count, k, done, flags))

    def _chunk_span(self, chunk: Chunk) -> Span:
        return Span(chunk.address, self._scales_of(chunk.first), chunk.first, chunk.count)

    def _plan_batch(self) -> None:
        """Some rows exactly, then by turns: shortlist more rows than before, score the lists exactly."""
        gallery, q, k = self._gallery, self._queries, self._found
        self._capacity = list_capacity(self._tuning, q, k)
        self._lists = self._own(q * self._capacity * 4).address
        self._list_counts = self._own_zeros(4 * q)
        self._overflowed = self._own_zeros(4 * q)
        first = first_rows(self._tuning, q, k)
        opening, whole = list(self._spans(0, first)), list(self._spans(0, gallery.count))
        table = self._segments([*opening, *whole])
        pack, shortlist = self._shortlist()
        self._launches.append(pack)
        # Several blocks take what a launch before them left for exact, and with its terms. A launch over a
        # single row has one block on any GPU, so all launches have one or none is loose.
        loose = LOOSE if self._most_blocks == 1 else 0
        for i, span in enumerate(opening):
            self._launches.append(self._scan(table, table[1] + i, span.count, k, 0, loose))
        # An int8 shadow's wider margin lists some times more.
        expected = (4 if gallery.shadow is not None else 1) * k
        widest = max(2, self._capacity // (4 * expected))
        growth = stage_growth(self._tuning, q, expected, first, gallery.count, widest)
        done = first
        while done < gallery.count:
            end = min(gallery.count, done * growth)
            self._launches.extend(shortlist(span) for span in self._scanned_spans(done, end))
            flags = loose | (FINISH if end == gallery.count else 0)
            self._launches.append(self._scan(table, 0, 0, k, 0, flags))
            done = end
        for i, span in enumerate(whole):
            flags = RESCUE | (FINISH if i == len(whole) - 1 else 0)
            self._launches.append(self._scan(table, table[1] + len(opening) + i, span.count, k, 0, flags))

    def _scanned_spans(self, start: int, stop: int) -> Iterator[Span]:
        shadow = self._gallery.shadow
        if shadow is None:
            marks = self._gallery.ratio_scales
            for span in self._spans(start, stop):
                if self._weighted:
                    span = replace(span, scales=marks.address + span.first * 4 if marks is not None else 0)
                yield span
            return
        scales = 0 if self._weighted else shadow.scales.address + start * 4
        yield Span(shadow.memory.address + start * shadow.vectors * 16, scales, start, stop - start)

    def _shortlist(self) -> tuple[Launch, Any]:
        """The launch that packs the terms, and what makes a shortlist launch of a span."""
        gallery = self._gallery
        suffix, vectors, steps = scanned(gallery)
        shape = self._shape()
        assert shape is not None
        family, groups, warps, row_tiles = shape
        block_groups = groups * warps
        across = -(-self._queries // (8 * block_groups))
        terms = self._term_count if self._weighted else 1
        operands = self._own(across * block_groups * steps * self._tiles * 256).address
        constants = self._own(self._queries * terms * 16).address
        scale = 1.0 if suffix == "i8" else row_scale(gallery.largest_value)
        pack = PackArguments(
            self.numerators,
            self.weights,
            operands,
            constants,
            self._queries,
            self._term_count,
            gallery.dimension,
            steps,
            {"f32": 4, "f16": 8, "i8": 16}[suffix],
            scale,
            gallery.largest_norm,
            2.0**-11 if suffix == "f32" or scale < 1 else 0.0,
            0.5 if gallery.shadow is not None else 0.0,
        )
        kind = f"ratio{terms}" if self._weighted else "dot1"
        shared = block_groups * steps * self._tiles * 256
        rows_of_block = WARPS // warps * 16 * row_tiles
        blocks = self._device.multiprocessors * (1 if family == "many" else 2)

        def launch(span: Span) -> Launch:
            arguments = ShortlistArguments(
                span.address,
                span.scales,
                operands,
                constants,
                self._state["floors"],
                self.allow,
                self._lists,
                self._list_counts,
                span.first,
                span.count,
                self._queries,
                vectors,
                steps,
                self._capacity,
                warps,
                scale,
            )
            down = max(1, min(-(-span.count // rows_of_block), blocks // across))
            return Launch(f"{family}_{suffix}_{kind}", (down, across), shared, arguments)

        packing = Launch(
            "pack_ratio" if self._weighted else "pack_dot",
            (across * block_groups * 8 * terms, 1),
            PACK_SHARED_BYTES,
            pack,
        )
        return packing, launch
