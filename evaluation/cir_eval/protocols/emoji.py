"""Emoji: one query a modification, all emoji of a style, reference removed; a part each pair of styles."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets.emoji.layout import SPLITS
from cir_eval.datasets.emoji.reader import EmojiDataset, Split
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows

__all__ = ["PROTOCOLS", "part_name"]


def part_name(reference: str, gallery: str) -> str:
    """What a part is called whose references are drawn in one style and its gallery in another."""
    return gallery if reference == gallery else f"{reference} to {gallery}"


def _load(root: Path, split: str) -> list[Part]:
    data = EmojiDataset.open(root)
    part = data.split(split)
    ids = tuple(one.id for one in part.emoji)
    queries = {style: _queries(part, style) for style in data.styles}
    images = {style: part.images(style) for style in data.styles}
    pairs = [(style, style) for style in images]
    pairs += [(reference, gallery) for gallery in images for reference in images if reference != gallery]
    return [
        Part(
            part_name(reference, gallery),
            ids,
            images[gallery],
            queries[gallery],
            None if reference == gallery else images[reference],
        )
        for reference, gallery in pairs
    ]


def _queries(split: Split, gallery: str) -> tuple[Query, ...]:
    """The queries of a part. What the gallery's style draws as it draws the target is correct too.

    A query whose reference it draws like the target is left out: there is nothing to see of its change.
    """
    found = []
    for number, query in enumerate(split.queries):
        alike = split.alike[gallery].get(query.target, (query.target,))
        if query.reference in alike:
            continue
        negatives = [split.rows[id_] for id_ in query.hard_negatives if id_ not in alike]
        found.append(
            Query(
                str(number),
                split.rows[query.reference],
                (query.text,),
                to_rows([split.rows[id_] for id_ in alike]),
                kind=query.kind,
                negatives=to_rows(negatives) if negatives else None,
            )
        )
    return tuple(found)


PROTOCOLS = (
    Protocol(
        name="emoji/styles",
        source="cir-bench emoji: held-out compositions; a part a style, and one a pair of styles with "
        "references in the first and the gallery in the second",
        splits=tuple(reversed(SPLITS)),
        ks=(1, 5, 10, 50),
        negative_ks=(1, 5),
        measure=("R@1",),
        load=_load,
    ),
)
