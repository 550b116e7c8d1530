"""MIT-States: TIRG's protocol. The text is an adjective; whoever shows the noun in that state is correct."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets import mitstates
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import rows_by_label

__all__ = ["PROTOCOLS"]


def _tirg(root: Path, split: str) -> list[Part]:
    photos = mitstates.read_photos(root, split)
    of_composition = rows_by_label([f"{photo.adjective} {photo.noun}" for photo in photos])
    of_adjective = rows_by_label([photo.adjective for photo in photos])
    of_noun = rows_by_label([photo.noun for photo in photos])
    states: dict[str, list[str]] = {}
    for photo in photos:
        known = states.setdefault(photo.noun, [])
        if photo.adjective not in known:
            known.append(photo.adjective)
    queries = tuple(
        Query(
            key=f"{row}:{adjective}",
            reference=row,
            texts=(adjective,),
            correct=of_composition[f"{adjective} {photo.noun}"],
            also={"adjective": of_adjective[adjective], "noun": of_noun[photo.noun]},
        )
        for row, photo in enumerate(photos)
        for adjective in states[photo.noun]
        if adjective != photo.adjective
    )
    ids = tuple(str(photo.path.relative_to(root / "images")) for photo in photos)
    return [Part("all", ids, [photo.path for photo in photos], queries)]


PROTOCOLS = (
    Protocol(
        name="mitstates/tirg",
        source="google/tirg: an image with every other state of its noun, all test images, reference removed",
        splits=mitstates.SPLITS,
        ks=(1, 5, 10, 50, 100),
        measure=("R@1", "R@5", "R@10"),
        load=_tirg,
    ),
)
"""The protocol on MIT-States."""
