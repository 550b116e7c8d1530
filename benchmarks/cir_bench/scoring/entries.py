"""What is timed: our kernels, the rooflines, and the alternatives.

An entry answers all queries of the workload. Its name says whose it is: `cir/` ours, `roofline/` what the
machine can do at best, else the library.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_bench.scoring.workload import Workload, aligned_copy, artemis_terms, quantise
from cir_infer.errors import PackageError
from cir_infer.extras import is_installed
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.cpu import CpuScorer, Int8Scorer
from cir_infer.scoring.linearised import (
    Candidates,
    LinearisedScorer,
    faiss_candidates,
    lancedb_candidates,
    recall,
    usearch_candidates,
)

__all__ = ["SGEMM_SIDE", "Entry", "alternatives", "linearised", "ours", "rooflines"]

SGEMM_SIDE = 2048
_TOGETHER = 1 << 15


@dataclass
class Entry:
    """One thing to time.

    Attributes:
        name: e.g. "cir/cpu".
        dtype: the type of the rows that it reads.
        call: answers every query; returns what `verify` takes.
        verify: whether the answer is right; None for a roofline, which has no answer.
        standing_bytes: memory that it keeps beyond the rows.
        per_query: it loops over queries, so that some of them may be timed for all.
        facts: more to report, e.g. a measured recall.
        reads: the type of the rows that a scan reads, where it is not `dtype`.
        in_cache: seconds that the same scan takes for all rows if they never leave a core's cache.
    """

    name: str
    dtype: str
    call: Callable[[int], Any]
    verify: Callable[[Any], bool] | None = None
    standing_bytes: int = 0
    per_query: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    reads: str = ""
    in_cache: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        self.reads = self.reads or self.dtype


def ours(work: Workload, dtypes: tuple[str, ...], instruction_sets: tuple[str, ...] = ()) -> Iterator[Entry]:
    """`cir/cpu` on every type of rows; `cir/exact-from-int8` on float32 (else float16) rows and on int8."""
    stored = {dtype: _rows(work, dtype) for dtype in dtypes}
    for dtype, rows in stored.items():
        yield _reading(dtype, CpuScorer(rows, threads=work.threads))
    exact = next((d for d in dtypes if d != "int8"), None)
    if exact and "int8" not in dtypes:
        copy = Rows.of(
            aligned_copy(np.zeros(work.values.shape, np.int8)), np.ones(work.values.shape[:-1], np.float32)
        )
        yield _reading("int8", CpuScorer(copy, threads=work.threads))
    for isa in instruction_sets or (None,):
        suffix = "" if isa is None else f" ({isa})"
        for dtype, rows in stored.items():
            scorer = CpuScorer(rows, threads=work.threads, instruction_set=isa)
            entry = _scorer("cir/cpu" + suffix, dtype, scorer, work, rows, 0)
            if len(work.terms.numerators) > 1 and not rows.has_tokens:
                plain = CpuScorer(rows, threads=work.threads, instruction_set=isa, products="float32")
                entry = _counted(entry, scorer, plain, work)
                yield _scorer("cir/cpu, products in float32" + suffix, dtype, plain, work, rows, 0)
            floats = dtype != "int8"  # a small int8 gallery is not scanned as a large one is
            yield replace(entry, in_cache=partial(_in_cache, work, dtype, isa) if floats else None)
        for dtype in (d for d in (exact, "int8") if d in stored):
            fast = Int8Scorer(stored[dtype], threads=work.threads, instruction_set=isa)
            entry = _scorer("cir/exact-from-int8" + suffix, dtype, fast, work, stored[dtype], fast.copy_bytes)
            yield replace(entry, reads="int8")


def _rows(work: Workload, dtype: str) -> Rows:
    if dtype == "int8":
        return quantise(work.values)
    return Rows.of(work.values if dtype == "float32" else aligned_copy(work.values, dtype))


def _reading(dtype: str, scorer: CpuScorer) -> Entry:
    return Entry("roofline/read", dtype, lambda _: scorer.read_all())


def _scorer(name: str, dtype: str, scorer: Scorer, work: Workload, rows: Rows, standing: int) -> Entry:
    facts: dict[str, Any] = {}

    def verify(answer: TopK) -> bool:
        facts["score_error"] = work.error(answer.rows, answer.scores)
        return work.is_best(answer.rows, answer.scores, rows)

    return Entry(name, dtype, lambda _: scorer.topk(work.terms, work.k), verify, standing, facts=facts)


def _counted(entry: Entry, scorer: CpuScorer, plain: CpuScorer, work: Workload) -> Entry:
    """The same, whose answer must be the very one of products in float32, and with what its lists were."""
    right = entry.verify

    def verify(answer: TopK) -> bool:
        counts, queries = scorer.statistics, len(work.terms.numerators)
        if counts.bounded:
            entry.facts["list_rows"] = counts.listed / queries
            entry.facts["bounded_share"] = counts.bounded / (counts.bounded + counts.multiplied)
        expected = plain.topk(work.terms, work.k)
        same = (
            np.array_equal(answer.rows, expected.rows)
            and np.array_equal(answer.scores, expected.scores)
            and np.array_equal(answer.terms, expected.terms)
        )
        return same and right is not None and right(answer)

    return replace(entry, verify=verify)


def _in_cache(work: Workload, dtype: str, instruction_set: str | None) -> float:
    """Seconds for all rows and threads, from the slope between two small galleries on one thread."""
    few, many = 60, 360
    seconds = []
    for count in (few, many):
        part = replace(work, values=aligned_copy(work.values[:count]))
        scorer = CpuScorer(_rows(part, dtype), threads=1, instruction_set=instruction_set)
        tries = []
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(50):
                scorer.topk(work.terms, min(work.k, few))
            tries.append((time.perf_counter() - start) / 50)
        seconds.append(float(np.median(tries)))
    return (seconds[1] - seconds[0]) / (many - few) * len(work.values) / work.threads


def linearised(work: Workload, library: str) -> Entry:
    """`cir/linearised`: candidates from an HNSW graph, scores exact, recall measured."""
    rows = Rows.of(work.values)
    start = time.perf_counter()
    if library == "usearch":
        from usearch.index import Index

        index = Index(ndim=work.values.shape[1], metric="ip", dtype="f16", expansion_search=256)
        index.add(np.arange(len(work.values)), work.values, threads=work.threads)
        candidates = usearch_candidates(index)
        size = int(index.memory_usage)
    elif library == "lancedb":
        candidates, size = _in_lancedb(work.values)
    else:
        import faiss

        faiss.omp_set_num_threads(work.threads)
        graph: Any = faiss.IndexHNSWFlat(work.values.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efSearch = 256
        graph.add(work.values)
        candidates = faiss_candidates(graph)
        # FAISS does not tell: its copy of the rows, and 4 bytes a link.
        size = work.values.nbytes + 4 * int(graph.hnsw.neighbors.size())
    built = time.perf_counter() - start
    exact = CpuScorer(rows, threads=work.threads)
    scorer = LinearisedScorer(exact, rows, candidates)
    measured = artemis_terms(100, work.values.shape[1], 5, near=work.values)
    shares = recall(scorer, exact, measured, work.k)
    flat = LinearisedScorer(exact, rows, _flat_candidates(exact))
    facts = {
        "recall": float(shares.mean()),
        "recall_lowest": float(shares.min()),
        "recall_queries": len(shares),
        "recall_without_index_loss": float(recall(flat, exact, measured[:20], work.k).mean()),
        "build_s": built,
    }
    return Entry(
        f"cir/linearised, {library} {'IVF-PQ' if library == 'lancedb' else 'HNSW'}",
        "float32",
        lambda _: scorer.topk(work.terms, work.k),
        lambda answer: bool((answer.rows >= 0).all()),
        standing_bytes=size,
        facts=facts,
    )


def _in_lancedb(values: npt.NDArray[np.float32]) -> tuple[Candidates, int]:
    """Rows in a database in a folder of their own, removed at the end, and the bytes of its index."""
    import tempfile
    from pathlib import Path

    if not (is_installed("lancedb") and is_installed("pyarrow")):
        raise PackageError("--linearised lancedb needs lancedb and pyarrow: pip install lancedb pyarrow")
    import lancedb
    import pyarrow as pa

    folder = tempfile.TemporaryDirectory()
    width = values.shape[1]

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(values), _TOGETHER):
            part = np.ascontiguousarray(values[start : start + _TOGETHER])
            rows = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), width)
            numbers = pa.array(np.arange(start, start + len(part)))
            yield pa.RecordBatch.from_arrays([numbers, rows], schema=schema)

    schema = pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float32(), width))])
    table = lancedb.connect(folder.name).create_table("rows", batches(), schema=schema)
    partitions = max(1, round(len(values) ** 0.5))
    table.create_index(
        "dot", num_partitions=partitions, num_sub_vectors=width // 8, vector_column_name="vector"
    )
    size = sum(place.stat().st_size for place in Path(folder.name).rglob("_indices/**/*") if place.is_file())
    weakref.finalize(table, folder.cleanup)
    return lancedb_candidates(table), size


def _flat_candidates(exact: CpuScorer) -> Candidates:
    """An index that misses nothing: what the linearisation itself loses."""
    return lambda queries, count: exact.topk(QueryTerms(queries[:, None], None, ("dot",)), count).rows


def rooflines(work: Workload) -> Iterator[Entry]:
    """Besides reading, which comes with each type of rows: a matrix product, for batches."""
    if len(work.terms.numerators) > 1 and is_installed("torch"):
        import torch

        torch.set_num_threads(work.threads)
        side = torch.ones(SGEMM_SIDE, SGEMM_SIDE)
        yield Entry("roofline/sgemm", "float32", lambda _: side @ side)


def alternatives(work: Workload) -> Iterator[Entry]:
    """The same answer by other means, and one dot product by libraries that can do no more."""
    stored = Rows.of(work.values)
    if stored.has_tokens:
        if is_installed("torch"):
            yield _einsum(work, stored)
        return
    if is_installed("torch"):
        yield from _torch(work, stored)
    yield _numpy(work, stored)
    plain = QueryTerms(work.dots[:, None], None, ("dot",))
    if is_installed("faiss"):
        yield _faiss(work, stored, plain)
    if is_installed("usearch"):
        yield _usearch(work, stored, plain)


def _einsum(work: Workload, stored: Rows) -> Entry:
    """The score of items of several vectors as it is written down."""
    import torch

    torch.set_num_threads(work.threads)
    rows, queries = torch.from_numpy(work.values), torch.from_numpy(work.dots)

    @torch.inference_mode()
    def run(_: int) -> Any:
        # All products at once, but no more than a gigabyte of them.
        step = max(1, (1 << 28) // (rows.shape[0] * rows.shape[1]))
        parts = [
            torch.einsum("qd,nmd->qnm", queries[start : start + step], rows).amax(2).topk(work.k).indices
            for start in range(0, len(queries), step)
        ]
        return torch.cat(parts).numpy()

    return Entry(
        "torch/einsum and maximum",
        "float32",
        run,
        lambda best: work.is_best(best, None, stored, tolerance=1e-4),
    )


def _torch(work: Workload, stored: Rows) -> Iterator[Entry]:
    import torch

    from cir_bench.torch_scoring import literal_scores, ranked, two_product_scores

    torch.set_num_threads(work.threads)
    rows = torch.from_numpy(work.values)
    numerators = torch.from_numpy(work.terms.numerators)
    weights = None if work.terms.weights is None else torch.from_numpy(work.terms.weights)

    @torch.inference_mode()
    def literal(queries: int) -> Any:
        one = [
            ranked(literal_scores(numerators[q], None if weights is None else weights[q], rows), work.k)
            for q in range(queries)
        ]
        return torch.stack(one).numpy()

    yield Entry(
        "torch/literal",
        "float32",
        literal,
        lambda best: work.is_best(best, None, stored, tolerance=1e-4),
        per_query=True,
    )

    squares = torch.from_numpy(work.squares)

    @torch.inference_mode()
    def products(_: int) -> Any:
        # The whole score matrix, but no larger a part of it than the literal form's temporaries.
        step = max(1, (1 << 28) // len(rows))
        parts = []
        for start in range(0, len(numerators), step):
            part = slice(start, start + step)
            w = None if weights is None else weights[part]
            parts.append(two_product_scores(numerators[part], w, rows, squares).topk(work.k).indices)
        return torch.cat(parts).numpy()

    yield Entry(
        "torch/two-products",
        "float32",
        products,
        lambda best: work.is_best(best, None, stored, tolerance=1e-4),
        work.values.nbytes,
    )


def _numpy(work: Workload, stored: Rows) -> Entry:
    squares = work.squares

    def run(queries: int) -> Any:
        best = np.empty((queries, work.k), np.int64)
        for q in range(queries):
            scores = np.zeros(len(work.values), np.float32)
            for j in range(work.terms.numerators.shape[1]):
                term = work.values @ work.terms.numerators[q, j]
                if work.terms.weights is not None:
                    term /= np.sqrt(squares @ work.terms.weights[q, j])
                scores += term
            top = np.argpartition(scores, -work.k)[-work.k :]
            best[q] = top[np.argsort(-scores[top], kind="stable")]
        return best

    return Entry(
        "numpy/matrix-vector",
        "float32",
        run,
        lambda best: work.is_best(best, None, stored, tolerance=1e-4),
        squares.nbytes,
        per_query=True,
    )


def _faiss(work: Workload, stored: Rows, plain: QueryTerms) -> Entry:
    import faiss

    faiss.omp_set_num_threads(work.threads)
    index = faiss.IndexFlatIP(work.values.shape[1])
    index.add(work.values)
    return Entry(
        "faiss/IndexFlatIP, one dot",
        "float32",
        lambda _: index.search(work.dots, work.k),
        lambda answer: work.is_best(answer[1], None, stored, plain, tolerance=1e-4),
        work.values.nbytes,
    )


def _usearch(work: Workload, stored: Rows, plain: QueryTerms) -> Entry:
    from usearch.compiled import MetricKind
    from usearch.index import search

    def run(_: int) -> Any:
        found = search(work.values, work.dots, work.k, MetricKind.IP, exact=True, threads=work.threads)
        return np.asarray(found.keys).astype(np.int64).reshape(len(work.dots), work.k)

    return Entry(
        "usearch/exact, one dot",
        "float32",
        run,
        lambda best: work.is_best(best, None, stored, plain, tolerance=1e-4),
    )
