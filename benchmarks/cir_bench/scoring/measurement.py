"""Verify, then time in turn: `cir-bench scoring`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_bench.machine import peak_host_bytes, reset_peak_host_bytes
from cir_bench.scoring.entries import SGEMM_SIDE, Entry, alternatives, linearised, ours, rooflines
from cir_bench.scoring.workload import Workload
from cir_bench.timing import percentile, quiet_collector
from cir_infer.console.progress import progress_bar
from cir_infer.errors import ScoringError

__all__ = ["measure"]

_LONGEST_S = 6.0
"""A loop over queries that takes longer is timed on fewer of them."""
_PAUSE_S = 0.1
"""Idle threads of OpenBLAS and OpenMP spin for tens of milliseconds, on the cores of the entry after them."""
_BUDGET_S = 15.0
_LEAST_ROUNDS = 3
_SGEMM = ("roofline/sgemm", "float32")
_SGEMM_FLOPS = 2 * SGEMM_SIDE**3


def measure(
    work: Workload,
    dtypes: tuple[str, ...],
    rounds: int,
    tell: Callable[[str], object],
    first_stage: str | None = None,
    instruction_sets: tuple[str, ...] = (),
) -> list[dict[str, Any]]:
    """Time every entry, each right beside what it is compared with.

    The bandwidth of a machine with neighbours changes from second to second. So a round times the yardsticks
    of an entry (the read roofline for ours, ours for an alternative) and then the entry itself, and a ratio
    is the median of the ratios of the rounds, never one of medians taken at different times.

    Args:
        work: what is scored.
        dtypes: types of rows for our kernels.
        rounds: how often each entry is called, in turn; slow entries stop when their time is up.
        tell: called with what is being done.
        first_stage: library whose HNSW graph proposes candidates for `cir/linearised`; it is then timed
            against our exact scan and the read roofline alone.
        instruction_sets: where not empty, our kernels are timed once for each of them, and no alternative.

    Returns:
        One object an entry: `name`, `dtype`, `verified`, `median_ms`, `p10_ms`, `p90_ms` (of all queries
        together), `of_roofline` (time over reading the same type of rows; over the bytes that a scan of int8
        rows reads where the copy is int8), `extra_bytes` beyond the rows (memory in use during a call, the
        answer included, and copies that it keeps, which `copy_bytes` tells apart); `over_ours` for an
        alternative: `{"cir/cpu float32": {"median", "p10", "p90"}, ...}`; `queries_timed` where a loop over
        queries was timed on fewer and scaled; `of_sgemm` for batches: useful flops a second over those of
        the machine's matrix product; `score_error` for ours: the largest difference from the definition on
        the rows before they were stored as this type, over the largest score; `in_cache_ms` for one query:
        the same scan of rows that stay in a core's cache, scaled to all rows and threads, i.e. what the
        arithmetic alone takes.

    Raises:
        ScoringError: one of our own entries does not verify.
    """
    queries = len(work.terms.numerators)
    entries: list[Entry] = []
    extra: dict[int, int] = {}
    timed: dict[int, int] = {}
    sources: list[Iterable[Entry]] = [ours(work, dtypes, instruction_sets), rooflines(work)]
    if first_stage:
        tell(f"building a graph of {len(work.values):,} rows with {first_stage}")
        sources.append([linearised(work, first_stage)])
    elif not instruction_sets:
        sources.append(alternatives(work))
    for source in sources:
        for entry in source:
            tell(f"verifying {entry.name} on {entry.dtype} rows")
            timed[id(entry)] = _verified(entry, queries)
            extra[id(entry)] = _call_bytes(entry, timed[id(entry)])
            entries.append(entry)
    if queries == 1:
        tell("scanning what a cache holds")
        for entry in entries:
            if entry.in_cache is not None:
                entry.facts["in_cache_ms"] = 1e3 * entry.in_cache()
    tell(f"timing, {rounds} rounds of {len(entries)} entries beside what they are compared with")
    rows = [(entry, _yardsticks(entry, entries)) for entry in entries]
    spent = _in_turn(rows, timed, rounds, queries)
    return [_result(work, entry, spent[id(entry)], timed[id(entry)], extra[id(entry)]) for entry, _ in rows]


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


def _yardsticks(entry: Entry, entries: list[Entry]) -> list[Entry]:
    """What is timed beside an entry in every round."""
    if entry.name.startswith("roofline/"):
        return []
    if entry.name.startswith("cir/") and not entry.name.startswith("cir/linearised"):
        return [e for e in entries if (e.name, e.dtype) in (("roofline/read", entry.reads), _SGEMM)]
    mine = [e for e in entries if e.name in ("cir/cpu", "cir/exact-from-int8")]
    # Where several vectors an item leave one alternative, it is held against ours on every type of rows.
    return mine if entry.name.startswith("torch/einsum") else [e for e in mine if e.dtype == entry.dtype]


@dataclass
class _Spent:
    """Milliseconds for all queries, per round; those of the yardsticks in the same rounds."""

    own: list[float] = field(default_factory=list)
    beside: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def ratios(self, key: tuple[str, str]) -> npt.NDArray[np.float64]:
        return np.array(self.own, np.float64) / np.array(self.beside[key], np.float64)


def _in_turn(
    rows: list[tuple[Entry, list[Entry]]], timed: dict[int, int], rounds: int, queries: int
) -> dict[int, _Spent]:
    spent = {id(entry): _Spent() for entry, _ in rows}
    taken = dict.fromkeys(spent, 0.0)
    order = np.random.default_rng(0)

    def once(entry: Entry) -> float:
        time.sleep(_PAUSE_S)
        start = time.perf_counter()
        entry.call(timed[id(entry)])
        return time.perf_counter() - start

    with quiet_collector():
        for done in progress_bar(range(rounds), rounds, "timing", "round"):
            for index in order.permutation(len(rows)):
                entry, yardsticks = rows[index]
                mine = spent[id(entry)]
                if done >= _LEAST_ROUNDS and taken[id(entry)] > _BUDGET_S:
                    continue
                for yardstick in yardsticks:
                    scaled = 1e3 * once(yardstick) * (queries / timed[id(yardstick)])
                    mine.beside.setdefault((yardstick.name, yardstick.dtype), []).append(scaled)
                seconds = once(entry)
                taken[id(entry)] += seconds
                mine.own.append(1e3 * seconds * (queries / timed[id(entry)]))
    return spent


def _result(work: Workload, entry: Entry, spent: _Spent, timed: int, extra: int) -> dict[str, Any]:
    out: dict[str, Any] = {
        "name": entry.name,
        "dtype": entry.dtype,
        "verified": entry.verify is not None,
        "median_ms": percentile(spent.own, 50),
        "p10_ms": percentile(spent.own, 10),
        "p90_ms": percentile(spent.own, 90),
        "of_roofline": None,
        "extra_bytes": extra + entry.standing_bytes,
        "copy_bytes": entry.standing_bytes,
        **entry.facts,
    }
    if timed != len(work.terms.numerators):
        out["queries_timed"] = timed
    over: dict[str, dict[str, float]] = {}
    for key in spent.beside:
        ratios = spent.ratios(key)
        if key[0] == "roofline/read":
            out["of_roofline"] = percentile(ratios, 50)
        elif key == _SGEMM:
            out["of_sgemm"] = percentile(work.flops / _SGEMM_FLOPS / ratios, 50)
        else:
            over[" ".join(key)] = {
                "median": percentile(ratios, 50),
                "p10": percentile(ratios, 10),
                "p90": percentile(ratios, 90),
            }
    return {**out, "over_ours": over} if over else out
