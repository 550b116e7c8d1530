"""Fashion200K: TIRG's protocol, kept by ARTEMIS. Every image with the target's caption is correct."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from cir_eval.datasets import fashion200k
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import row_of, rows_by_label

__all__ = ["PROTOCOLS"]


def _load(root: Path, split: str) -> list[Part]:
    items = fashion200k.read_items(root, split)
    same = rows_by_label([item.caption for item in items])
    rows = {item.path: row for row, item in enumerate(items)}
    queries = []
    for number, (source, target) in enumerate(fashion200k.read_queries(root)):
        reference, answer = row_of(rows, source, "test_queries.txt"), row_of(rows, target, "test_queries.txt")
        text = fashion200k.modification(items[reference].caption, items[answer].caption)
        queries.append(Query(str(number), reference, (text,), same[items[answer].caption]))
    seen: Counter[str] = Counter()
    ids = []
    for item in items:
        seen[item.path] += 1
        ids.append(item.path if seen[item.path] == 1 else f"{item.path}#{seen[item.path]}")
    images = [fashion200k.image_path(root, item) for item in items]
    return [Part("all", tuple(ids), images, tuple(queries))]


PROTOCOLS = (
    Protocol(
        name="fashion200k/tirg",
        source="google/tirg: test_queries.txt, all test images, reference removed, equal caption is correct",
        splits=fashion200k.SPLITS,
        ks=(1, 5, 10, 50, 100),
        measure=("R@1", "R@10", "R@50"),
        load=_load,
    ),
    Protocol(
        name="fashion200k/artemis",
        source="naver/artemis: as TIRG, with its own K",
        splits=fashion200k.SPLITS,
        ks=(1, 10, 50),
        measure=("R@1", "R@10", "R@50"),
        load=_load,
    ),
)
"""The protocols on Fashion200K."""
