"""Hits of the rows that a scorer found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cir_infer.gallery.snapshot import Item
from cir_infer.hits import Hit
from cir_infer.scoring.contract import TopK

__all__ = ["made_hits"]


def made_hits(
    items: Sequence[Item],
    top: TopK,
    query: int,
    places: Iterable[int],
    names: Sequence[str],
    scale: float = 1.0,
) -> list[Hit]:
    """The hits of one query.

    Args:
        items: what the gallery says of its rows, place by place.
        top: what the scorer found.
        query: its number in that.
        places: those of the rows to be told, best first.
        names: of the terms.
        scale: what scores and terms are multiplied by.
    """
    scores, terms = top.scores[query], top.terms[query]
    if scale != 1:
        scores, terms = scores.astype(np.float64) * scale, terms.astype(np.float64) * scale
    scores, terms = scores.tolist(), terms.tolist()
    tokens = None if top.tokens is None else top.tokens[query].tolist()
    return [
        Hit(
            items[place].id,
            rank,
            scores[place],
            dict(zip(names, terms[place], strict=True)),
            items[place].metadata,
            items[place].source,
            {} if tokens is None else dict(zip(names, tokens[place], strict=True)),
        )
        for rank, place in enumerate(places, start=1)
    ]
