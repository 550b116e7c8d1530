"""The generated scenes: one query a modification, all scenes of the split, reference removed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cir_eval.datasets.scenes.layout import SPLITS
from cir_eval.datasets.scenes.reader import ScenesDataset
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows

__all__ = ["PROTOCOLS"]


def _load(root: Path, split: str, view: str) -> list[Part]:
    part = ScenesDataset.open(root).split(split)
    queries = tuple(
        Query(str(number), part.rows[query.reference], (query.text,), to_rows([part.rows[query.target]]))
        for number, query in enumerate(part.queries)
    )
    return [Part("all", part.ids, [part.image_path(id_, view) for id_ in part.ids], queries)]


def _protocol(view: str) -> Protocol:
    return Protocol(
        name=f"scenes/{view}",
        source=f"cir-bench scenes, {view}: held-out compositions, hard negatives, reference removed",
        splits=tuple(reversed(SPLITS)),
        ks=(1, 5, 10, 50),
        measure=("R@1",),
        load=partial(_load, view=view),
    )


PROTOCOLS = (_protocol("shaded"), _protocol("flat"))
"""One protocol a view."""
