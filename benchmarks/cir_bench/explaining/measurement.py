"""`cir-bench explain`: pointing game, deletion curve and time of each way to explain, in one run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from cir_bench.explaining.cases import Case, inside
from cir_bench.explaining.deletion import PARTS, term_left
from cir_bench.explaining.methods import Method
from cir_bench.timing import interleave, ratio
from cir_infer.console.progress import progress_bar
from cir_infer.engine import Engine
from cir_infer.explaining.shares import values_of
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searcher import Searcher

__all__ = ["Score", "largest_gap", "measure", "query_ratio"]


@dataclass
class Score:
    """What is counted of one way to explain.

    Attributes:
        largest: whether the largest value over the target lies in the right cell.
        growth: whether the largest difference to the reference, explained alike, does.
        left: of the term, by `PARTS`; the first is the whole of it.
        seconds: for one picture.
    """

    largest: list[bool]
    growth: list[bool]
    left: list[Any]
    seconds: list[float]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        left = np.mean(self.left, axis=0)
        return {
            "largest_in_the_cell": float(np.mean(self.largest)),
            "largest_growth_in_the_cell": float(np.mean(self.growth)),
            "term_left": dict(zip(map(str, PARTS), left.tolist(), strict=True)),
            "milliseconds": float(np.median(self.seconds) * 1000) if self.seconds else None,
        }


def measure(
    engine: Engine, cases: Sequence[Case], methods: Mapping[str, Method], term: int, progress: bool
) -> dict[str, Any]:
    """Every way to explain a term, on the same pictures, one after the other for each query."""
    scores = {name: Score([], [], [], []) for name in [*methods, "chance"]}
    random = np.random.default_rng(0)
    for case in progress_bar(cases, len(cases), "explaining", "query", progress):
        terms = _terms(engine, case)
        pictures = np.stack([engine.prepare(case.target), engine.prepare(case.reference)])
        for name, method in methods.items():
            started = time.perf_counter()
            target = method(pictures[:1], terms, term)[0]
            scores[name].seconds.append(time.perf_counter() - started)
            growth = target - method(pictures[1:], terms, term)[0]
            scores[name].largest.append(inside(target, case.cells))
            scores[name].growth.append(inside(growth, case.cells))
            scores[name].left.append(term_left(engine, pictures[0], target, terms, term))
        guess = random.random((9, 9))
        scores["chance"].largest.append(inside(guess, case.cells))
        scores["chance"].growth.append(inside(random.random((9, 9)), case.cells))
        scores["chance"].left.append(term_left(engine, pictures[0], guess, terms, term))
    return {name: score.to_json() for name, score in scores.items()}


def _terms(engine: Engine, case: Case) -> QueryTerms:
    reference = engine.encode_references([case.reference]) if engine.needs_reference else None
    return engine.compose(reference, engine.encode_texts([case.text]) if engine.needs_text else None)


def largest_gap(engine: Engine, cases: Sequence[Case]) -> float:
    """Over all targets and terms, |sum of shares and the constant's share - term| without any correction."""
    worst = 0.0
    for case in cases:
        terms = _terms(engine, case)
        made = engine.encode_in_parts(engine.prepare(case.target)[None])
        whole = made.parts[0].astype(np.float64).sum((0, 1)) + made.constant[0]
        # A term does not see the length of a row; a plain product does, so it is that of the row.
        whole *= np.linalg.norm(made.rows[0]) / np.linalg.norm(whole)
        gap = values_of(terms, whole.astype(np.float32)) - values_of(terms, made.rows[0])
        worst = max(worst, float(np.abs(gap).max()))
    return worst


def query_ratio(with_it: Searcher, without: Searcher, cases: Sequence[Case]) -> dict[str, float]:
    """How many times as long a query takes on a bundle that explains as on the same one without, by turns."""
    asked = {name: cycle(cases) for name in ("with", "without")}

    def query(name: str, searcher: Searcher) -> None:
        case = next(asked[name])
        searcher.query(case.reference, case.text, k=10)

    calls = {"with": partial(query, "with", with_it), "without": partial(query, "without", without)}
    taken = interleave(calls, seconds=20, at_least=200)
    return {**ratio(taken["with"], taken["without"]), "rounds": len(taken["with"])}
