"""Recall, subset recall and ranks over rankings, in percent, as the public repositories count them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cir_eval.protocols.contract import Protocol, Query, RowNumbers
from cir_infer.errors import UsageError

__all__ = [
    "NEGATIVES",
    "Outcome",
    "judge",
    "measure_of",
    "members_of",
    "metrics_of",
    "paraphrases",
    "ranking_of",
    "spread_of",
]

NEGATIVES = "negatives"
"""Of a metric that is the better the smaller it is: the share of explicit negatives among the first K."""


@dataclass(frozen=True)
class Outcome:
    """What one query's ranking was worth.

    Attributes:
        values: by metric name ("R@10", "mAP@5", "R_sub@1", "R@1 (noun)"): what the query adds, in [0, 1]. A
            metric in which it has no part ("mAP@10 (negation)") is missing.
        rank: the best rank of a correct row, from 1; None where the ranking is too short to hold one.
    """

    values: Mapping[str, float]
    rank: int | None


def ranking_of(
    protocol: Protocol, query: Query, rows: RowNumbers, candidates: int | None = None
) -> RowNumbers:
    """The rows that the protocol ranks: without empty places and, if it says so, without the reference.

    Args:
        protocol: the protocol.
        query: the query.
        rows: (n,) rows best first, as `TopK.rows` has them.
        candidates: see `Part.candidates`.
    """
    kept = rows >= 0
    if candidates is not None:
        kept &= rows < candidates
    if protocol.reference_excluded:
        kept &= rows != query.reference
    return rows[kept]


def members_of(protocol: Protocol, query: Query, ranking: RowNumbers) -> RowNumbers:
    """The rows of `query.subset`, best first, as far down the ranking as the protocol looks; else none.

    Args:
        protocol: says how far.
        query: with a subset or without.
        ranking: (n,) rows best first, from `ranking_of`, whole.
    """
    members = ranking[: protocol.subset_depth]
    return members[np.isin(members, [] if query.subset is None else query.subset)]


def judge(protocol: Protocol, query: Query, ranking: RowNumbers) -> Outcome:
    """Judge one ranking.

    A query's value for R@K is the largest gain among the first K; with hard targets that is 1 or 0. The
    subset metric ranks the members of `query.subset` by where they stand in `ranking`, and counts gains
    alike; members beyond `protocol.subset_depth` are lost, as with their authors.

    Args:
        protocol: says which metrics.
        query: with at least one correct row.
        ranking: (n,) rows best first, from `ranking_of`.
    """
    gains = np.ones(len(query.correct)) if query.gains is None else query.gains
    gain_of = dict(zip(query.correct.tolist(), gains.tolist(), strict=True))
    places = _places(ranking, query.correct)
    values: dict[str, float] = {}
    for k in protocol.ks:
        found = [gain_of[row] for row in ranking[places[places < k]].tolist()]
        values[f"R@{k}"] = max(found, default=0.0)
    for k in protocol.map_ks:
        values[f"mAP@{k}" if k else "mAP"] = _average_precision(places, len(query.correct), k)
    if protocol.aspect_k:
        precision = _average_precision(places, len(query.correct), protocol.aspect_k)
        values |= {f"mAP@{protocol.aspect_k} ({aspect})": precision for aspect in query.aspects}
    if query.negatives is not None and query.negatives.size:
        wrong = _places(ranking, query.negatives)
        values |= {f"{NEGATIVES}@{k}": float((wrong < k).sum()) / k for k in protocol.negative_ks}
    for criterion, rows in query.also.items():
        first = _places(ranking, rows)[:1]
        for k in protocol.ks:
            values[f"R@{k} ({criterion})"] = float((first < k).any())
    if query.subset is not None:
        members = members_of(protocol, query, ranking)
        for k in protocol.subset_ks:
            values[f"R_sub@{k}"] = max((gain_of.get(row, 0.0) for row in members[:k].tolist()), default=0.0)
    return Outcome(values, int(places[0]) + 1 if places.size else None)


def metrics_of(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means in percent, each over the queries that have a part in it; lower median and mean of the ranks.

    The ranks are there where all of them are known.

    Raises:
        UsageError: there are no outcomes.
    """
    if not outcomes:
        raise UsageError("no query was judged; a metric needs at least one")
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.values)
    found = {name: [o.values[name] for o in outcomes if name in o.values] for name in names}
    metrics = {name: 100 * float(np.mean(values)) for name, values in found.items()}
    ranks = sorted(o.rank for o in outcomes if o.rank is not None)
    if len(ranks) == len(outcomes):
        metrics["median_rank"] = float(ranks[(len(ranks) - 1) // 2])
        metrics["mean_rank"] = float(np.mean(ranks))
    return metrics


def paraphrases(queries: Sequence[Query]) -> list[list[int]]:
    """The queries of a part, by their numbers, that ask for the same in other words.

    They have one reference, the same correct rows and the same subset to tell them from; their texts differ.
    Only groups of at least two.
    """
    groups: dict[tuple[int, bytes, bytes], dict[tuple[str, ...], int]] = {}
    for number, query in enumerate(queries):
        if query.correct.size:
            among = b"" if query.subset is None else np.sort(query.subset).tobytes()
            asked = groups.setdefault((query.reference, np.sort(query.correct).tobytes(), among), {})
            asked.setdefault(query.texts, number)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def spread_of(groups: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """How far wordings of one query lie apart: largest minus smallest value, mean over groups, in percent.

    Args:
        groups: outcomes of `paraphrases`; a metric counts in the groups whose queries all have a part in it.
    """
    spreads: dict[str, list[float]] = {}
    for group in groups:
        for name in group[0].values:
            values = [outcome.values[name] for outcome in group if name in outcome.values]
            if len(values) == len(group):
                spreads.setdefault(name, []).append(max(values) - min(values))
    return {name: 100 * float(np.mean(some)) for name, some in spreads.items()}


def measure_of(protocol: Protocol, parts: Iterable[Mapping[str, float]]) -> float:
    """The one figure that the protocol's authors select models by: mean over parts and over `measure`."""
    return float(np.mean([metrics[name] for metrics in parts for name in protocol.measure]))


def _average_precision(places: RowNumbers, correct: int, k: int) -> float:
    """Precision at the place of each correct row among the first K, summed, over min(correct rows, K).

    Baldrati et al., "Zero-shot composed image retrieval with textual inversion", ICCV 2023, equation 8.
    """
    places = places[places < k] if k else places
    precisions = np.arange(1, len(places) + 1) / (places + 1)
    return float(precisions.sum()) / (min(correct, k) if k else correct)


def _places(ranking: RowNumbers, rows: RowNumbers) -> RowNumbers:
    """Where any of `rows` stands in the ranking, from 0, ascending."""
    return np.flatnonzero(np.isin(ranking, rows))
