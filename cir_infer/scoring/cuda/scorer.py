"""The CUDA scorer: calls, threads, and what is kept between them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError, ScoringError, shown
from cir_infer.gpu.device import Device, Stream
from cir_infer.processes.fork import ProcessBound, finalize_here
from cir_infer.processes.staying import Staying
from cir_infer.scoring.contract import SCORER_STAYS, QueryTerms, Rows, TopK
from cir_infer.scoring.cuda.gallery import CudaGallery
from cir_infer.scoring.cuda.search import CudaSearch
from cir_infer.scoring.cuda.tuning import Tuning, tuning_for
from cir_infer.scoring.validation import check_query, check_sizes, within_memory

__all__ = ["CudaScorer", "CudaStatistics"]

_KEPT_SEARCHES = 8
_MOST_QUERIES = 4096
"""Queries in one launch; more are answered in parts."""


class CudaStatistics(NamedTuple):
    """What a scorer has done so far.

    Attributes:
        queries: queries answered.
        batched: of these, how many went through the tensor cores or the int8 shadow first.
        rescued: of these, how many had more candidates than fit, so that every row was scored exactly.
    """

    queries: int
    batched: int
    rescued: int


class CudaScorer(Staying):
    """Exact top-k over rows on a GPU; a `Scorer`.

    Rows are stored as they are given. Few queries take one launch of the exact kernel; batches first take
    the tensor cores, which list all rows that could be among the best, and the exact kernel scores the
    lists. Both give the same scores, bit for bit. Threads may share a scorer; calls run one after the
    other on the scorer's own stream.

    Args:
        rows: the gallery. Copied to the GPU where they fit; else read in place by an integrated GPU (keep
            them unchanged while the scorer lives), or copied to page-locked memory and streamed.
        scan: "stored" scans the rows as they are; "int8" keeps an int8 copy of float rows on the GPU,
            scans that, and scores exactly whatever its error bound cannot rule out. The answer is the
            same; it takes half or a quarter of the memory traffic.
        device: the GPU; None is GPU 0 through PyCUDA's primary context.
        memory: GPU bytes that rows may take; None is what is free.
        tuning: see `Tuning`; None is the one for the GPU's architecture.

    A process that was forked from the one that made the scorer cannot use it: every call there raises
    `DeviceError`.

    Raises:
        DeviceError: no driver, no GPU, PyCUDA or the compiled kernels missing, too little memory.
        ScoringError: an int8 scan of int8 rows, items of several vectors, or more than 2^32 - 2^20 rows.
    """

    stays = SCORER_STAYS

    def __init__(
        self,
        rows: Rows,
        *,
        scan: Literal["stored", "int8"] = "stored",
        device: Device | None = None,
        memory: int | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        if scan not in ("stored", "int8"):
            raise ScoringError(f"scan is {shown(scan)}; expected 'stored' or 'int8'")
        if rows.has_tokens:
            raise ScoringError("these rows have several vectors an item; use make_scorer, which groups them")
        self._lock = threading.Lock()
        self._searches: OrderedDict[tuple[int, int, bool, int, bool], CudaSearch] = OrderedDict()
        self._queries = self._batched = self._rescued_before = 0
        if device is None:
            from cir_infer.gpu.context import open_device

            device = open_device()
        self._device = device
        self._tuning = tuning_for(device.architecture) if tuning is None else tuning
        with device.active():
            self._stream = device.new_stream()
            self._gallery = CudaGallery.of(rows, device, self._stream, memory, scan == "int8")
        self._process = ProcessBound(
            "this CUDA scorer", "make a scorer in the process that uses it; a GPU does not survive a fork"
        )
        # Also at interpreter exit, while PyCUDA and the context are still there.
        self._release = finalize_here(self, _release, device, self._stream, self._gallery, self._searches)

    @property
    def name(self) -> str:
        """E.g. "cuda (sm_90)" or "cuda (sm_75, int8 scan, streamed)"."""
        gallery = self._open_gallery()
        notes = [f"sm_{self._device.architecture}"]
        notes += ["int8 scan"] if gallery.shadow is not None else []
        notes += [gallery.placement] if gallery.placement != "resident" else []
        return f"cuda ({', '.join(notes)})"

    @property
    def streamed(self) -> bool:
        """Whether rows pass through two buffers that all searches share: one search at a time, then."""
        return bool(self._open_gallery().chunks)

    @property
    def statistics(self) -> CudaStatistics:
        """What this scorer has done so far."""
        self._process.check()
        with self._lock:
            live = sum(search.rescued for search in self._searches.values() if search.batched)
            return CudaStatistics(self._queries, self._batched, self._rescued_before + live)

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """See `Scorer.topk`.

        Raises:
            ScoringError: as there.
            DeviceError: the GPU failed, or its memory does not hold the buffers of such a query.
        """
        gallery = self._open_gallery()
        check_query(terms, k, allow, gallery.count, gallery.dimension)
        q, j, _ = terms.numerators.shape
        with within_memory(terms, k):
            if q == 0 or gallery.count == 0:
                return TopK.empty(q, int(k), j)
            found = min(int(k), gallery.count)
            some = (
                [terms[i : i + _MOST_QUERIES] for i in range(0, q, _MOST_QUERIES)]
                if q > _MOST_QUERIES
                else [terms]
            )
            parts = [self._answer(part, found, allow) for part in some]
            return TopK.joined(parts).widened(int(k))

    def prepare(
        self, queries: int, term_count: int, weighted: bool, k: int, masked: bool = False
    ) -> CudaSearch:
        """A search whose terms are already on the GPU, for callers with a stream of their own.

        Use it inside the device's primary context, and close it before the scorer. Where rows are
        `streamed`, nothing else of this scorer may run meanwhile: `topk` of another thread would overwrite
        the rows that this search is reading.

        Args:
            queries: Q, 1 to 4,096.
            term_count: J.
            weighted: whether the terms have weights.
            k: at least 1.
            masked: whether it reads a row mask.

        Raises:
            ScoringError: a value out of range.
            DeviceError: the buffers do not fit.
        """
        gallery = self._open_gallery()
        if not (1 <= queries <= _MOST_QUERIES and term_count >= 1):
            raise ScoringError(
                f"{shown(queries)} queries of {shown(term_count)} terms; expected 1 to {_MOST_QUERIES} "
                "queries and at least one term"
            )
        check_sizes(queries, term_count, k)
        with self._device.active():
            return CudaSearch(gallery, self._tuning, queries, term_count, weighted, k, masked)

    def close(self) -> None:
        """Free the GPU's memory. Later calls raise `ScoringError`; closing twice is fine.

        In a forked child there is nothing to free.
        """
        if not self._process.here:
            return
        with self._lock:
            self._release()

    def __enter__(self) -> CudaScorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_gallery(self) -> CudaGallery:
        self._process.check()  # before any lock, which another thread may have held at the fork
        if not self._release.alive:
            raise ScoringError("this scorer is closed; make a new one")
        return self._gallery

    def _answer(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None) -> TopK:
        with self._lock, self._device.active():
            self._open_gallery()  # it may have been closed while this call waited
            search = self._search(terms, k, allow is not None)
            search.upload(terms, allow, self._stream)
            search.launch(self._stream)
            self._device.synchronize(self._stream)
            self._queries += terms.queries
            self._batched += terms.queries if search.batched else 0
            return search.result()

    def _search(self, terms: QueryTerms, k: int, masked: bool) -> CudaSearch:
        q, j, _ = terms.numerators.shape
        key = (q, j, terms.weights is not None, k, masked)
        search = self._searches.pop(key, None)
        if search is None:
            search = self._new_search(key)
        self._searches[key] = search
        return search

    def _new_search(self, key: tuple[int, int, bool, int, bool]) -> CudaSearch:
        gallery = self._open_gallery()
        if len(self._searches) >= _KEPT_SEARCHES:
            self._drop_oldest_search()
        while True:
            try:
                return CudaSearch(gallery, self._tuning, *key)
            except DeviceError:
                if not self._searches:
                    raise
                self._drop_oldest_search()

    def _drop_oldest_search(self) -> None:
        _, search = self._searches.popitem(last=False)
        self._rescued_before += search.rescued if search.batched else 0
        search.close()


def _release(
    device: Device,
    stream: Stream,
    gallery: CudaGallery,
    searches: OrderedDict[tuple[int, int, bool, int, bool], CudaSearch],
) -> None:
    with device.active():
        device.synchronize(stream)
        for search in searches.values():
            search.close()
        searches.clear()
        gallery.close()
