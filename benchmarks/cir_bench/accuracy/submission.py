"""Files for the test servers of CIRR and CIRCO, which alone know the answers of their test splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cir_eval.protocols.contract import Part, Protocol, RowNumbers

__all__ = ["write_submission"]

_NAMES, _SUBSET_NAMES = 50, 3


def write_submission(
    folder: Path,
    protocol: Protocol,
    part: Part,
    rankings: Sequence[RowNumbers],
    members: Sequence[RowNumbers],
) -> list[Path]:
    """Write the first 50 names a query: recall.json and recall_subset.json (the first 3), or circo.json.

    Args:
        folder: created where it does not exist.
        protocol: one with a `submission` version.
        part: the gallery and its queries.
        rankings: one a query, rows best first, from `metrics.ranking_of`; at least the first 50.
        members: one a query, from `metrics.members_of`: of a whole ranking.

    Returns:
        The paths written.
    """
    recall: dict[str, list[str]] = {}
    subset: dict[str, list[str]] = {}
    for query, ranking, inside in zip(part.queries, rankings, members, strict=True):
        recall[query.key] = [part.ids[row] for row in ranking[:_NAMES]]
        if query.subset is not None:
            subset[query.key] = [part.ids[row] for row in inside[:_SUBSET_NAMES]]
    folder.mkdir(parents=True, exist_ok=True)
    if protocol.submission == "circo":
        path = folder / "circo.json"
        numbers = {key: [int(name) for name in names] for key, names in recall.items()}
        path.write_text(json.dumps(numbers), encoding="utf-8")
        return [path]
    written = []
    for metric, answers in (("recall", recall), ("recall_subset", subset)):
        if not answers:
            continue
        path = folder / f"{metric}.json"
        tail = {"version": protocol.submission, "metric": metric}
        path.write_text(json.dumps({**answers, **tail}), encoding="utf-8")
        written.append(path)
    return written
