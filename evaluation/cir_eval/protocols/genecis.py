"""GeneCIS: four tasks; a query ranks the 10 to 15 images of its own template."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets.genecis import TASKS, Crops, Shown, read_templates
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows

__all__ = ["PROTOCOLS"]


def _load(root: Path, split: str) -> list[Part]:  # noqa: ARG001 - there is one
    return [_part(root, task) for task in TASKS]


def _part(root: Path, task: str) -> Part:
    rows: dict[Shown, int] = {}
    queries = []
    for number, one in enumerate(read_templates(root, task)):
        for image in (one.reference, one.target, *one.gallery):
            rows.setdefault(image, len(rows))
        queries.append(
            Query(
                key=str(number),
                reference=rows[one.reference],
                texts=(one.condition,),
                correct=to_rows([rows[one.target]]),
                subset=to_rows([rows[image] for image in (one.target, *one.gallery)]),
            )
        )
    ids = tuple(place if box is None else f"{place} {box}" for place, box in rows)
    return Part(task, ids, Crops(root, list(rows)), tuple(queries))


PROTOCOLS = (
    Protocol(
        name="genecis/genecis",
        source="facebookresearch/genecis: R_sub@K in the template's own gallery, mean over four tasks",
        splits=("all",),
        ks=(),
        measure=("R_sub@1",),
        load=_load,
        reference_excluded=False,
        subset_ks=(1, 2, 3),
    ),
)
"""The protocol on GeneCIS."""
