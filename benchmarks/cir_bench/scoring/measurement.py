"""Verify, then time in turn: `cir-bench scoring`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cir_bench.machine import peak_host_bytes, reset_peak_host_bytes
from cir_bench.scoring.entries import Entry, alternatives, linearised, ours, rooflines
from cir_bench.scoring.workload import Workload
from cir_bench.timing import percentile, quiet_collector
from cir_infer.errors import ScoringError

__all__ = ["measure"]

_LONGEST_S = 15.0
"""A loop over queries that takes longer is timed on fewer of them."""
_PAUSE_S = 0.1
"""Idle threads of OpenBLAS and OpenMP spin for tens of milliseconds, on the cores of the entry after them."""
_BUDGET_S = 30.0
_LEAST_ROUNDS = 3


def measure(
    work: Workload,
    dtypes: tuple[str, ...],
    rounds: int,
    progress: Callable[[str], object],
    first_stage: str | None = None,
) -> list[dict[str, Any]]:
    """Time every entry.

    Args:
        work: what is scored.
        dtypes: types of rows for our kernels.
        rounds: how often each entry is called, in turn; slow entries stop when their time is up.
        progress: told what is being done.
        first_stage: library whose HNSW graph proposes candidates for `cir/linearised`; it is then timed
            against our exact scan and the read roofline alone.

    Returns:
        One object an entry: `name`, `dtype`, `verified`, `median_ms`, `p10_ms`, `p90_ms` (of all queries
        together), `of_roofline` (against reading the same type of rows; of the bytes that a scan of int8
        rows reads where the copy is int8), `extra_bytes` beyond the rows (memory in use during a call, the
        answer included, and copies that it keeps, which `copy_bytes` tells apart); `queries_timed` where
        a loop over queries was timed on fewer and scaled; `of_sgemm` for batches.

    Raises:
        ScoringError: one of our own entries does not verify.
    """
    queries = len(work.terms.numerators)
    entries: list[Entry] = []
    extra: dict[int, int] = {}
    timed: dict[int, int] = {}
    sources: list[Iterable[Entry]] = [ours(work, dtypes), rooflines(work)]
    if first_stage:
        progress(f"building a graph of {len(work.values):,} rows with {first_stage}")
        sources.append([linearised(work, first_stage)])
    else:
        sources.append(alternatives(work))
    for source in sources:
        for entry in source:
            progress(f"verifying {entry.name} on {entry.dtype} rows")
            timed[id(entry)] = _verified(entry, queries)
            extra[id(entry)] = _call_bytes(entry, timed[id(entry)])
            entries.append(entry)
    progress("timing")
    spent = _in_turn(entries, timed, rounds)
    return _results(work, entries, spent, timed, extra)


def _verified(entry: Entry, queries: int) -> int:
    """Check an entry's answer, and say on how many queries to time it."""
    if entry.verify is None:
        entry.call(queries)
        return queries
    count = 1 if entry.per_query else queries
    start = time.perf_counter()
    answer = entry.call(count)
    taken = (time.perf_counter() - start) / count
    if not entry.verify(answer):
        raise ScoringError(f"{entry.name} on {entry.dtype} rows is not the definition's answer; not timed")
    return max(1, min(queries, int(_LONGEST_S / taken))) if entry.per_query else queries


def _call_bytes(entry: Entry, queries: int) -> int:
    """Memory that one call needs at its peak, the answer included."""
    reset_peak_host_bytes()
    before = peak_host_bytes()
    entry.call(min(queries, 2) if entry.per_query else queries)
    after = peak_host_bytes()
    return 0 if before is None or after is None else after - before


def _in_turn(entries: list[Entry], timed: dict[int, int], rounds: int) -> dict[int, list[float]]:
    spent: dict[int, list[float]] = {id(entry): [] for entry in entries}
    order = np.random.default_rng(0)
    with quiet_collector():
        for done in range(rounds):
            for index in order.permutation(len(entries)):
                entry = entries[index]
                mine = spent[id(entry)]
                if done >= _LEAST_ROUNDS and sum(mine) > _BUDGET_S:
                    continue
                time.sleep(_PAUSE_S)
                start = time.perf_counter()
                entry.call(timed[id(entry)])
                mine.append(time.perf_counter() - start)
    return spent


def _results(
    work: Workload,
    entries: list[Entry],
    spent: dict[int, list[float]],
    timed: dict[int, int],
    extra: dict[int, int],
) -> list[dict[str, Any]]:
    queries = len(work.terms.numerators)
    scaled = {id(e): 1e3 * np.asarray(spent[id(e)]) * (queries / timed[id(e)]) for e in entries}
    medians = {(e.name, e.dtype): percentile(scaled[id(e)], 50) for e in entries}
    sgemm = medians.get(("roofline/sgemm", "float32"))
    side_flops = 2 * 2048**3
    results = []
    for entry in entries:
        milliseconds = scaled[id(entry)]
        median = percentile(milliseconds, 50)
        read = "int8" if entry.name == "cir/exact-from-int8" else entry.dtype
        roofline = medians.get(("roofline/read", read))
        out: dict[str, Any] = {
            "name": entry.name,
            "dtype": entry.dtype,
            "verified": entry.verify is not None,
            "median_ms": median,
            "p10_ms": percentile(milliseconds, 10),
            "p90_ms": percentile(milliseconds, 90),
            "of_roofline": median / roofline if roofline else None,
            "extra_bytes": extra[id(entry)] + entry.standing_bytes,
            "copy_bytes": entry.standing_bytes,
            **entry.facts,
        }
        if timed[id(entry)] != queries:
            out["queries_timed"] = timed[id(entry)]
        if sgemm and entry.name.startswith("cir/"):
            out["of_sgemm"] = (work.flops / median) / (side_flops / sgemm)
        results.append(out)
    return results
