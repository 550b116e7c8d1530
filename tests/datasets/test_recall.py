"""Ranks and recall against a direct definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_eval.recall import ranks_of_targets, recall_at
from cir_infer.errors import UsageError


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 10**6), st.booleans())
def test_ranks_follow_the_sorted_list(queries, rows, seed, exclude):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, rows)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    targets = rng.integers(0, rows, queries)
    excluded = (targets + 1) % rows if exclude else None
    ranks = ranks_of_targets(scores, targets, excluded)
    for q in range(queries):
        order = sorted(range(rows), key=lambda r: (-np.nan_to_num(scores[q, r], nan=-np.inf), r))
        if excluded is not None:
            order.remove(excluded[q])
        assert ranks[q] == order.index(targets[q]) + 1


def test_recall_counts_the_first_k():
    ranks = np.array([1, 2, 5, 11])
    assert recall_at(ranks) == {1: 0.25, 5: 0.75, 10: 0.75}
    assert recall_at(ranks, [11]) == {11: 1.0}


def test_what_cannot_be_meant_is_refused():
    scores = np.zeros((2, 3))
    with pytest.raises(UsageError, match="excluded row"):
        ranks_of_targets(scores, np.array([0, 1]), np.array([2, 1]))
    with pytest.raises(UsageError, match="one of the 3 rows"):
        ranks_of_targets(scores, np.array([0, 3]))
    with pytest.raises(UsageError, match="expected"):
        ranks_of_targets(scores, np.array([0]))
    with pytest.raises(UsageError):
        recall_at(np.array([], np.int64))
    with pytest.raises(UsageError):
        recall_at(np.array([1]), [0])
