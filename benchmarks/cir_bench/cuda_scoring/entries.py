"""What is timed: our scorer, and the rooflines. Baselines are in pytorch.py and libraries.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from cir_bench.cuda_scoring.place import Place
from cir_bench.cuda_scoring.workload import Workload
from cir_infer.errors import DeviceError
from cir_infer.gpu.device import Stream
from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.arguments import ReadArguments
from cir_infer.scoring.cuda.search import CudaSearch

__all__ = ["EVERYTHING", "Entry", "filled", "ours", "skipped"]

_MOST_COPIES = 8
_TOLERANCE = 2e-5


class _Everything:
    """Every name is in it."""

    def __contains__(self, name: object) -> bool:
        return True


EVERYTHING = _Everything()


def _nothing() -> None:
    return None


@dataclass
class Entry:
    """One thing to time.

    Attributes:
        name: whose it is and what: "cir/...", "read/...", else the library's.
        dtype: type of the rows that it keeps.
        launch: enqueues one run on the stream; the number picks the copy of the inputs.
        verified: whether its answer was right; only then is it timed.
        skipped: why it is not timed.
        read_bytes: of the rows that one run must read.
        extra_bytes: of memory beyond the rows and the answer.
        times: a run answers a part of the queries, so its time counts so many times.
        default_stream: it runs on the legacy default stream, as PyTorch does.
        facts: more to report.
        close: frees what it holds.
    """

    name: str
    dtype: str
    launch: Callable[[int, Stream], object] = lambda _i, _stream: None
    verified: bool = False
    skipped: str = ""
    read_bytes: int = 0
    extra_bytes: int = 0
    times: float = 1.0
    default_stream: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    close: Callable[[], object] = _nothing


def skipped(name: str, dtype: str, why: object) -> Entry:
    """An entry that cannot run here."""
    return Entry(name, dtype, skipped=(str(why).splitlines() or [type(why).__name__])[0])


def filled(place: Place, scorer: CudaScorer, terms: QueryTerms, k: int) -> CudaSearch:
    """A prepared search whose terms are on the device."""
    search = scorer.prepare(terms.queries, terms.numerators.shape[1], terms.weights is not None, k)
    with place.device.active():
        place.device.upload(search.numerators, terms.numerators, None)
        if terms.weights is not None:
            place.device.upload(search.weights, terms.weights, None)
        place.device.synchronize(None)
    return search


def ours(place: Place, work: Workload) -> Iterator[Entry]:
    """Reading the rows, scoring them as stored, and for float16 exactly from their int8 shadow."""
    row_bytes = work.rows.blocks[0].nbytes
    copies = max(1, min(_MOST_COPIES, math.ceil(place.cache_bytes / max(1, row_bytes))))
    yield _reader(place, work.dtype, row_bytes, copies)
    yield _scorer(place, work, "stored", copies)
    if work.dtype == "float16":
        yield _scorer(place, work, "int8", copies)


def _scorer(place: Place, work: Workload, scan: Literal["stored", "int8"], copies: int) -> Entry:
    name = "cir/cuda" if scan == "stored" else "cir/cuda-exact-from-int8"
    scorers: list[CudaScorer] = []
    searches: list[CudaSearch] = []

    def close() -> None:
        with place.device.active():
            for search in searches:
                search.close()
        for scorer in scorers:
            scorer.close()

    try:
        for _ in range(copies):
            scorers.append(CudaScorer(work.rows, scan=scan, device=place.device))
            searches.append(filled(place, scorers[-1], work.terms, work.case.k))
        with place.device.active():
            for search in searches:
                search.launch(None)
            place.device.synchronize(None)
            answers = [search.result() for search in searches]
    except DeviceError as error:
        close()
        return skipped(name, work.dtype, error)
    row_bytes = work.rows.blocks[0].nbytes
    return Entry(
        name,
        work.dtype,
        lambda i, stream: searches[i % copies].launch(stream),
        all(work.is_best(a.rows, a.scores, work.terms, _TOLERANCE) for a in answers),
        read_bytes=row_bytes if scan == "stored" else work.rows.count * work.rows.dimension,
        extra_bytes=0 if scan == "stored" else work.rows.count * (work.rows.dimension + 4),
        facts={"scorer": scorers[0].name},
        close=close,
    )


def _reader(place: Place, dtype: str, nbytes: int, copies: int) -> Entry:
    """The roofline: a kernel that reads the bytes of the rows and nothing else."""
    device = place.device
    name, blocks = f"read/{dtype}", 4 * device.multiprocessors
    memory: list[Any] = []
    # Not zeros: what is all alike may be compressed on its way.
    data = np.resize(np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8), nbytes)

    def close() -> None:
        with device.active():
            for m in memory:
                m.free()

    try:
        with device.active():
            memory.append(device.allocate(blocks * 256 * 4))
            for _ in range(copies):
                memory.append(device.allocate(nbytes))
                device.upload(memory[-1].address, data, None)
            device.synchronize(None)
    except DeviceError as error:
        close()
        return skipped(name, dtype, error)

    def launch(i: int, stream: Stream) -> None:
        arguments = ReadArguments(memory[1 + i % copies].address, memory[0].address, nbytes // 16)
        device.launch("read_bytes", (blocks, 1), 0, arguments, stream)

    return Entry(name, dtype, launch, verified=True, read_bytes=nbytes, close=close)
