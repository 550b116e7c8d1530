"""Items of several vectors, scored by a scorer that knows only rows: exact, from its short lists.

For one term, the M (k - 1) + 1 best vectors hold the k best items: k - 1 items have at most M (k - 1)
vectors, and equal scores are ordered by the vector's number, so by the item's.

For several terms that is not so: the best item may be second in each of them. What holds is Fagin's
bound (Fagin, Lotem, Naor, "Optimal aggregation algorithms for middleware", 2003). Ask for the L best
vectors of each term by itself. An item that is in none of the J lists has, in each term, at most the last
of that list, so its score is at most the sum of the lasts. Every item that is in a list is scored whole;
once the k-th of those scores is above that sum, no other item can belong to the answer. Until then L is
doubled, at the latest to all vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from cir_infer.processes.staying import Staying
from cir_infer.scoring.contract import SCORER_STAYS, QueryTerms, Rows, Scorer, TopK
from cir_infer.scoring.reference import best_of, exact_item_scores, without_unranked
from cir_infer.scoring.validation import check_query, within_memory

__all__ = ["GroupedScorer"]

_AT_ONCE = 1 << 22
"""Values of items that are scored whole together."""

Items = npt.NDArray[np.int64]


class GroupedScorer(Staying):
    """Exact top-k over items of several vectors, by a scorer over their vectors.

    Args:
        rows: the items, kept.
        make: what makes the scorer of the vectors.
    """

    stays = SCORER_STAYS

    def __init__(self, rows: Rows, make: Callable[[Rows], Scorer]) -> None:
        self._rows = rows
        self._scorer = make(rows.vectors)

    @property
    def name(self) -> str:
        """E.g. "cuda (sm_90), items of 32 vectors"."""
        return f"{self._scorer.name}, items of {self._rows.tokens_per_item} vectors"

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """See `Scorer.topk`."""
        rows = self._rows
        check_query(terms, k, allow, rows.count, rows.dimension)
        q, j, _ = terms.numerators.shape
        with within_memory(terms, k):
            if q == 0 or rows.count == 0:
                return TopK.empty(q, int(k), j, True)
            wanted = min(int(k), rows.count)
            mask = None if allow is None else _of_vectors(allow, rows.count, rows.tokens_per_item)
            answers = [self._one(terms[at], wanted, mask) for at in range(q)]
            return TopK.joined(answers).widened(int(k))

    def _one(self, terms: QueryTerms, k: int, mask: npt.NDArray[np.uint8] | None) -> TopK:
        """The k best items of one query, whose vectors `mask` allows."""
        every = self._rows.count * self._rows.tokens_per_item
        length = min(self._rows.tokens_per_item * (k - 1) + 1, every)
        seen = np.empty(0, np.int64)
        best = TopK.empty(1, 0, terms.numerators.shape[1], True)
        while True:
            lists = [self._scorer.topk(alone, length, mask) for alone in _alone(terms)]
            found = np.unique(np.concatenate([each.rows[0] for each in lists]))
            items = np.unique(found[found >= 0] // self._rows.tokens_per_item)
            best = best_of([best, *self._scored(terms, np.setdiff1d(items, seen))], k)
            seen = items
            if length == every or self._proven(best, k, lists):
                return without_unranked(best).widened(k)
            length = min(2 * length, every)

    def _proven(self, best: TopK, k: int, lists: list[TopK]) -> bool:
        """Whether no item outside the lists can be among the k best."""
        if any(each.rows[0, -1] < 0 for each in lists):
            # A list with every vector that ranks: an item in none of its places cannot rank in that term.
            return True
        if best.scores.shape[1] < k or np.isnan(best.scores[0]).any():
            return False
        if len(lists) == 1:  # ties are in order
            return True
        # Each last is within half a unit of the last place of a term that no other vector passes.
        lasts = [np.nextafter(each.scores[0, -1], np.float32(np.inf)).astype(np.float64) for each in lists]
        beyond = np.float64(sum(lasts)).astype(np.float32)
        return bool(best.scores[0, -1] > np.nextafter(beyond, np.float32(np.inf)))

    def _scored(self, terms: QueryTerms, items: Items) -> Iterator[TopK]:
        """Some items, each of its terms the largest over all its vectors."""
        step = max(1, _AT_ONCE // (self._rows.tokens_per_item * self._rows.dimension))
        for start in range(0, len(items), step):
            part = items[start : start + step]
            scores, by_term, winners = exact_item_scores(terms, self._rows.take(part))
            yield TopK(scores, part[None], by_term.transpose(0, 2, 1), winners.transpose(0, 2, 1))


def _alone(terms: QueryTerms) -> Iterator[QueryTerms]:
    """Each term of one query as a query."""
    for j, name in enumerate(terms.names):
        weights = None if terms.weights is None else terms.weights[:, j : j + 1]
        yield QueryTerms(terms.numerators[:, j : j + 1], weights, (name,))


def _of_vectors(allow: npt.NDArray[np.uint8], count: int, tokens: int) -> npt.NDArray[np.uint8]:
    """The mask of items as one of their vectors."""
    flags = np.unpackbits(allow, count=count, bitorder="little")
    return np.packbits(np.repeat(flags, tokens), bitorder="little")
