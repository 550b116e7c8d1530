"""CIRR: ARTEMIS' protocol with soft targets, and CLIP4Cir's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cir_eval.datasets import cirr
from cir_eval.datasets.cirr import Triplet
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import row_of, to_rows
from cir_infer.inputs.images import ImageLike

__all__ = ["PROTOCOLS"]


def _artemis(root: Path, split: str) -> list[Part]:
    """Soft targets; pre-extracted features where the folder has them, else the images."""
    gallery = cirr.read_gallery(root, split)
    if cirr.has_features(root):
        return [_part(root, split, gallery, list(cirr.read_features(root, gallery)), soft=True)]
    return [_part(root, split, gallery, list(cirr.image_paths(root, gallery)), soft=True)]


def _clip4cir(root: Path, split: str) -> list[Part]:
    gallery = cirr.read_gallery(root, split)
    return [_part(root, split, gallery, list(cirr.image_paths(root, gallery)), soft=False)]


def _part(root: Path, split: str, gallery: dict[str, str], images: list[ImageLike], soft: bool) -> Part:
    rows = {name: row for row, name in enumerate(gallery)}
    where = f"cap.{cirr.VERSION}.{split}.json"
    queries = []
    for triplet in cirr.read_triplets(root, split):
        gains = _gains(triplet, soft)
        queries.append(
            Query(
                key=triplet.pair,
                reference=row_of(rows, triplet.reference, where),
                texts=(triplet.caption,),
                correct=to_rows([row_of(rows, name, where) for name in gains]),
                gains=np.array(list(gains.values())),
                subset=to_rows(
                    [row_of(rows, name, where) for name in triplet.members if name != triplet.reference]
                ),
            )
        )
    return Part("all", tuple(gallery), images, tuple(queries))


def _gains(triplet: Triplet, soft: bool) -> dict[str, float]:
    """What each target is worth. Soft values below 0 count as 0, i.e. not at all."""
    if triplet.target is None:
        return {}
    if not soft:
        return {triplet.target: 1.0}
    return {name: gain for name, gain in {**triplet.soft_targets, triplet.target: 1.0}.items() if gain > 0}


PROTOCOLS = (
    Protocol(
        name="cirr/artemis",
        source="naver/artemis: soft targets, reference removed; the subset metric sees the first 50 only",
        splits=cirr.SPLITS,
        ks=(1, 5, 10, 50),
        measure=("R@5", "R_sub@1"),
        load=_artemis,
        subset_ks=(1, 2, 3),
        subset_depth=50,
        submission=cirr.VERSION,
    ),
    Protocol(
        name="cirr/clip4cir",
        source="ABaldrati/CLIP4Cir: hard targets, reference removed, subset ranked in the whole ranking",
        splits=cirr.SPLITS,
        ks=(1, 5, 10, 50),
        measure=("R@5", "R_sub@1"),
        load=_clip4cir,
        subset_ks=(1, 2, 3),
        submission=cirr.VERSION,
    ),
)
"""The protocols on CIRR."""
