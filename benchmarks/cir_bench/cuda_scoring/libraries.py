"""Exact search by FAISS and cuVS, where installed: one plain product a query, all that they can do."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np

from cir_bench.cuda_scoring.entries import EVERYTHING, Entry, skipped
from cir_bench.cuda_scoring.place import Place
from cir_bench.cuda_scoring.pytorch import rows_in_pytorch, why_no_pytorch
from cir_bench.cuda_scoring.workload import Workload
from cir_infer.extras import is_installed

__all__ = ["in_libraries"]

_TOLERANCE = 2e-2
_CHUNK = 1 << 18


def in_libraries(place: Place, work: Workload, wanted: Container[str] = EVERYTHING) -> Iterator[Entry]:
    """FAISS's flat index and cuVS's brute force over float16 rows, those of these names."""
    for name, make in (("faiss/flat, one dot", _faiss), ("cuvs/brute-force, one dot", _cuvs)):
        if name not in wanted:
            continue
        try:
            entry = make(place, work)
        except (RuntimeError, ImportError, AttributeError) as error:  # other releases, memory
            entry = skipped(name, work.dtype, error)
        entry.name, entry.default_stream = name, True
        yield entry


def _faiss(place: Place, work: Workload) -> Entry:
    """Queries and answers cross the bus, as its NumPy interface has it; that is tens of microseconds."""
    if not is_installed("faiss"):
        return skipped("", work.dtype, "FAISS is not installed")
    import faiss

    index: Any = faiss.IndexFlatIP(work.case.dim)
    held: list[Any] = []
    if place.torch == "cuda":
        if not hasattr(faiss, "StandardGpuResources"):
            return skipped("", work.dtype, "this FAISS has no GPU support")
        resources, options = faiss.StandardGpuResources(), faiss.GpuClonerOptions()
        resources.setDefaultNullStreamAllDevices()
        options.useFloat16 = True
        index = faiss.index_cpu_to_gpu(resources, 0, index, options)
        held = [resources]
    rows = work.rows.blocks[0]
    for start in range(0, len(rows), _CHUNK):
        index.add(rows[start : start + _CHUNK].astype(np.float32))
    vectors = work.dots.numerators[:, 0]
    scores, found = index.search(vectors, work.case.k)

    def close() -> None:
        index.reset()
        held.clear()

    return Entry(
        "",
        work.dtype,
        lambda _i, _stream: index.search(vectors, work.case.k),
        work.is_best(found, scores, work.dots, _TOLERANCE),
        read_bytes=rows.nbytes,
        close=close,
    )


def _cuvs(place: Place, work: Workload) -> Entry:
    """Each call waits for its answer, since cuVS then makes and synchronises resources of its own."""
    if not is_installed("cuvs"):
        return skipped("", work.dtype, "cuVS is not installed")
    missing = why_no_pytorch(place)
    if missing:
        return skipped("", work.dtype, f"rows are handed to cuVS as PyTorch tensors, and {missing}")
    import torch
    from cuvs.neighbors import brute_force

    rows = rows_in_pytorch(place, work)
    vectors = torch.from_numpy(work.dots.numerators[:, 0]).to(place.torch).to(rows.dtype)
    index = brute_force.build(rows, metric="inner_product")

    def run(_i: int, _stream: Any) -> Any:
        return brute_force.search(index, vectors, work.case.k)

    scores, found = (torch.as_tensor(x, device=place.torch).cpu().numpy() for x in run(0, None))
    right = work.is_best(found.astype(np.int64), scores, work.dots, _TOLERANCE)
    return Entry("", work.dtype, run, right, read_bytes=rows.nbytes)
