"""The generated scenes: one query a modification, all scenes of the split, reference removed."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cir_eval.datasets.scenes.layout import SPLITS
from cir_eval.datasets.scenes.reader import ScenesDataset
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows

__all__ = ["PROTOCOLS"]


def _load(root: Path, split: str, view: str, reference_view: str) -> list[Part]:
    part = ScenesDataset.open(root).split(split)
    queries = tuple(
        Query(
            str(number),
            part.rows[query.reference],
            (query.text,),
            to_rows([part.rows[query.target]]),
            kind=query.kind,
            negatives=to_rows([part.rows[id_] for id_ in query.hard_negatives])
            if query.hard_negatives
            else None,
        )
        for number, query in enumerate(part.queries)
    )
    images, references = (
        [part.image_path(id_, shown) for id_ in part.ids] for shown in (view, reference_view)
    )
    return [Part("all", part.ids, images, queries, None if view == reference_view else references)]


def _protocol(view: str, reference_view: str) -> Protocol:
    across = view != reference_view
    return Protocol(
        name=f"scenes/{reference_view}-to-{view}" if across else f"scenes/{view}",
        source=f"cir-bench scenes, {f'{reference_view} references, ' if across else ''}{view}: held-out "
        "compositions, hard negatives, reference removed",
        splits=tuple(reversed(SPLITS)),
        ks=(1, 5, 10, 50),
        negative_ks=(1, 5),
        measure=("R@1",),
        load=partial(_load, view=view, reference_view=reference_view),
    )


PROTOCOLS = (_protocol("shaded", "shaded"), _protocol("flat", "flat"), _protocol("shaded", "flat"))
"""One protocol a view, and one across them: flat references, a shaded gallery (CSS from 2D to 3D)."""
