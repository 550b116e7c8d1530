"""The answers of several shards as one: exact, because the k best of all are among the k best of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cir_infer.scoring.contract import TopK
from cir_infer.searching.found import Found

__all__ = ["merged"]


def merged(parts: Sequence[Found | None], k: int, coverage: float) -> Found:
    """The k best of each query: by score, then by the shard's place, then by the row in it.

    That is the order of one gallery that holds the rows of the shards one after the other.

    Args:
        parts: what each shard found, None for one that did not answer; at least one did.
        k: how many.
        coverage: see `Found`.
    """
    there = [part for part in parts if part is not None]
    tops = [part.top for part in there]
    scores = np.concatenate([top.scores for top in tops], axis=1)
    # Stable, and the shards are side by side, so equal scores stay in the order of shards and rows.
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    starts = np.cumsum([0, *(top.scores.shape[1] for top in tops)])
    top = TopK(
        np.take_along_axis(scores, order, 1),
        _taken([top.rows for top in tops], order),
        _taken([top.terms for top in tops], order),
        _taken([_tokens(top) for top in tops], order) if any(t.tokens is not None for t in tops) else None,
    )
    items = []
    for query, places in enumerate(order):
        which = np.searchsorted(starts, places, side="right") - 1
        items.append(
            [
                there[part].items[query][place - starts[part]]
                for part, place, row in zip(which, places, top.rows[query], strict=True)
                if row >= 0
            ]
        )
    return Found(
        top,
        items,
        _taken([part.same for part in there], order),
        sum(part.size for part in there),
        there[0].fingerprint,
        tuple(None if part is None else part.generations[0] for part in parts),
        coverage,
        _taken([_elsewhere(part) for part in there], order),
    )


def _taken(arrays: Sequence[Any], order: Any) -> Any:
    together = np.concatenate(arrays, axis=1)
    return np.take_along_axis(together, order if together.ndim == 2 else order[..., None], 1)


def _elsewhere(part: Found) -> Any:
    return np.zeros(part.top.rows.shape, np.bool_) if part.elsewhere is None else part.elsewhere


def _tokens(top: TopK) -> Any:
    """Which vectors gave the terms; none where a shard has no items of several."""
    return np.full(top.terms.shape, -1, np.int32) if top.tokens is None else top.tokens
