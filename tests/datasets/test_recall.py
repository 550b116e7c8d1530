"""Recall against a direct definition."""

from __future__ import annotations

import numpy as np
import pytest

from cir_eval.recall import recall_at
from cir_infer.errors import UsageError


def test_recall_counts_the_first_k():
    ranks = np.array([1, 2, 5, 11])
    assert recall_at(ranks) == {1: 0.25, 5: 0.75, 10: 0.75}
    assert recall_at(ranks, [11]) == {11: 1.0}


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(UsageError):
        recall_at(np.array([], np.int64))
    with pytest.raises(UsageError):
        recall_at(np.array([1]), [0])
