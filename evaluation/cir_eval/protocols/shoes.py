"""Shoes: ARTEMIS' protocol, and VAL's larger gallery."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets import shoes
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import row_of, to_rows

__all__ = ["PROTOCOLS"]


def _artemis(root: Path, split: str) -> list[Part]:
    return [_part(root, split, shoes.read_split(root, split))]


def _val(root: Path, split: str) -> list[Part]:
    names = dict.fromkeys(shoes.read_split(root, split))
    for triplet in shoes.read_triplets(root, split):
        names.update(dict.fromkeys((triplet.reference, triplet.target)))
    return [_part(root, split, list(names))]


def _part(root: Path, split: str, names: list[str]) -> Part:
    rows = {name: row for row, name in enumerate(names)}
    queries = tuple(
        Query(
            key=str(number),
            reference=row_of(rows, triplet.reference, f"triplet.{split}.json"),
            texts=(triplet.caption,),
            correct=to_rows([row_of(rows, triplet.target, f"triplet.{split}.json")]),
        )
        for number, triplet in enumerate(shoes.read_triplets(root, split))
    )
    return Part("all", tuple(names), [shoes.image_path(root, name) for name in names], queries)


PROTOCOLS = (
    Protocol(
        name="shoes/artemis",
        source="naver/artemis: one query a triplet, the split file is the gallery, reference removed",
        splits=shoes.SPLITS,
        ks=(1, 10, 50),
        measure=("R@1", "R@10", "R@50"),
        load=_artemis,
    ),
    Protocol(
        name="shoes/sac",
        source="Jandial et al. (no public code): R@1, R@10, R@50 and their mean; gallery and "
        "removal of the reference as naver/artemis, which is our reading",
        splits=shoes.SPLITS,
        ks=(1, 10, 50),
        measure=("R@1", "R@10", "R@50"),
        load=_artemis,
    ),
    Protocol(
        name="shoes/val",
        source="yanbeic/VAL: as ARTEMIS, over the split file with all references and targets",
        splits=shoes.SPLITS,
        ks=(1, 10, 50),
        measure=("R@1", "R@10", "R@50"),
        load=_val,
    ),
)
"""The protocols on Shoes."""
