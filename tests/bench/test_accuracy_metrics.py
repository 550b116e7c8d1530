"""Metrics over rankings, against worked answers and an independent, literal count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_bench.accuracy.measurement import over_runs
from cir_bench.accuracy.submission import write_submission
from cir_eval.metrics import Outcome, judge, measure_of, members_of, metrics_of, ranking_of
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_infer.errors import DatasetError, UsageError


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def protocol(**changes) -> Protocol:
    fields = {
        "name": "test/test",
        "source": "",
        "splits": ("val",),
        "ks": (1, 2, 5),
        "measure": ("R@1", "R@5"),
        "load": lambda root, split: [],
    }
    return Protocol(**{**fields, **changes})


def test_recall_counts_the_first_correct_row():
    query = Query("q", reference=0, texts=("x",), correct=rows(3, 4))
    outcome = judge(protocol(), query, rows(9, 4, 3, 1))
    assert outcome.values == {"R@1": 0.0, "R@2": 1.0, "R@5": 1.0}
    assert outcome.rank == 2


def test_soft_targets_count_the_largest_gain_among_the_first_k():
    query = Query("q", 0, ("x",), correct=rows(3, 4), gains=np.array([1.0, 0.5]))
    assert judge(protocol(), query, rows(4, 9, 3)).values == {"R@1": 0.5, "R@2": 0.5, "R@5": 1.0}


def test_subset_recall_ranks_members_only_and_loses_those_beyond_the_depth():
    query = Query("q", 0, ("x",), correct=rows(7), subset=rows(5, 6, 7))
    ranking = rows(9, 6, 8, 7, 5)
    shallow, deep = (protocol(subset_ks=(1, 2), subset_depth=depth) for depth in (3, None))
    assert judge(deep, query, ranking).values["R_sub@2"] == 1.0
    assert judge(shallow, query, ranking).values["R_sub@2"] == 0.0


def test_a_soft_target_earns_its_gain_in_the_subset_metric_too():
    query = Query("q", 0, ("x",), correct=rows(7, 6), gains=np.array([1.0, 0.5]), subset=rows(5, 6, 7))
    assert judge(protocol(subset_ks=(1,)), query, rows(6, 7)).values["R_sub@1"] == 0.5


def test_other_criteria_have_their_own_recall():
    query = Query("q", 0, ("x",), correct=rows(1), also={"noun": rows(1, 2)})
    values = judge(protocol(), query, rows(2, 1)).values
    assert (values["R@1"], values["R@1 (noun)"]) == (0.0, 1.0)


def test_an_aspect_has_the_precision_of_the_queries_that_are_about_it():
    asked = [Query("a", 0, ("x",), rows(1, 2), aspects=("negation",)), Query("b", 0, ("x",), rows(3))]
    plan = protocol(aspect_k=2)
    outcomes = [judge(plan, query, rows(5, 1, 3)) for query in asked]
    assert outcomes[0].values["mAP@2 (negation)"] == 0.25 and "mAP@2 (negation)" not in outcomes[1].values
    assert metrics_of(outcomes)["mAP@2 (negation)"] == metrics_of(outcomes[:1])["mAP@2 (negation)"] == 25.0
    assert metrics_of(outcomes[::-1])["mAP@2 (negation)"] == 25.0
    assert not any("negation" in name for name in metrics_of(outcomes[1:]))


def test_explicit_negatives_are_counted_among_the_first():
    query = Query("q", 0, ("x",), correct=rows(1), negatives=rows(4, 5, 6))
    values = judge(protocol(negative_ks=(1, 3, 10)), query, rows(1, 5, 4, 9)).values
    assert [values[f"negatives@{k}"] for k in (1, 3, 10)] == [0.0, pytest.approx(2 / 3), 0.2]
    assert (
        "negatives@1" not in judge(protocol(negative_ks=(1,)), Query("q", 0, ("x",), rows(1)), rows(1)).values
    )
    with pytest.raises(DatasetError, match="outside the gallery"):
        Part("all", ("a",), [Path("a")], (Query("q", 0, ("x",), rows(0), negatives=rows(1)),))


def test_the_reference_is_taken_out_only_if_the_protocol_says_so():
    query = Query("q", 4, ("x",), correct=rows(1))
    found = rows(4, 1, -1)
    assert ranking_of(protocol(), query, found).tolist() == [1]
    assert ranking_of(protocol(reference_excluded=False), query, found).tolist() == [4, 1]


def test_ranks_are_a_lower_median_and_a_mean_and_absent_where_one_is_unknown():
    def outcome(rank: int | None) -> Outcome:
        return Outcome({"R@1": float(rank == 1)}, rank)

    metrics = metrics_of([outcome(r) for r in (1, 2, 9, 40)])
    assert metrics == {"R@1": 25.0, "median_rank": 2.0, "mean_rank": 13.0}
    assert "median_rank" not in metrics_of([outcome(1), outcome(None)])
    with pytest.raises(UsageError):
        metrics_of([])


def test_the_measure_is_a_mean_over_parts_and_metrics():
    parts = [{"R@1": 10.0, "R@5": 30.0}, {"R@1": 0.0, "R@5": 100.0}]
    assert measure_of(protocol(), parts) == 35.0


@settings(max_examples=60)
@given(st.data())
def test_against_a_literal_count(data):
    n = data.draw(st.integers(3, 12))
    order = data.draw(st.permutations(range(n)))
    correct = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    reference = data.draw(st.sampled_from([r for r in range(n) if r not in correct] or [0]))
    plan = protocol()
    query = Query("q", reference, ("x",), rows(*sorted(correct)))
    outcome = judge(plan, query, ranking_of(plan, query, rows(*order)))
    left = [row for row in order if row != reference]
    for k in plan.ks:
        assert outcome.values[f"R@{k}"] == float(bool(set(left[:k]) & correct))
    ranks = [i for i, row in enumerate(left, start=1) if row in correct]
    assert outcome.rank == (ranks[0] if ranks else None)


def test_a_part_refuses_rows_that_do_not_exist_and_ids_that_repeat():
    query = Query("q", 5, ("x",), rows(0))
    with pytest.raises(DatasetError, match="outside the gallery"):
        Part("all", ("a", "b"), ("a.png", "b.png"), (query,))
    with pytest.raises(DatasetError, match="different ids"):
        Part("all", ("a", "a"), ("a.png", "b.png"), ())


def test_a_part_has_answers_to_all_of_its_queries_or_to_none():
    asked = [Query(key, 0, ("x",), rows(*correct)) for key, correct in (("a", [1]), ("b", []), ("c", [1]))]
    with pytest.raises(DatasetError, match=r"1 of 3 queries have no answer in the gallery, e\.g\. query 'b'"):
        Part("all", ("a", "b"), ("a.png", "b.png"), tuple(asked))
    assert Part("all", ("a", "b"), ("a.png", "b.png"), (asked[0], asked[2])).answered
    assert not Part("all", ("a", "b"), ("a.png", "b.png"), (asked[1],)).answered


def test_a_subset_is_ranked_as_far_down_as_the_protocol_says():
    query = Query("q", 0, ("x",), rows(7), subset=rows(5, 6, 7))
    shallow, deep = (protocol(subset_ks=(1,), subset_depth=depth) for depth in (3, None))
    assert members_of(deep, query, rows(9, 6, 8, 7, 5)).tolist() == [6, 7, 5]
    assert members_of(shallow, query, rows(9, 6, 8, 7, 5)).tolist() == [6]
    assert members_of(deep, Query("q", 0, ("x",), rows(7)), rows(9, 6)).tolist() == []


def test_runs_are_averaged_over_what_all_of_them_know():
    first, second = (
        {"bundle": {"system": "a", "fingerprint": name}, "mean": mean}
        for name, mean in (("x", {"R@1": 1.0, "mean_rank": 9.0}), ("y", {"R@1": 2.0}))
    )
    for pair in ([first, second], [second, first]):
        assert over_runs(pair)["mean"] == {"R@1": 1.5}


def test_submission_files(tmp_path: Path):
    plan = protocol(subset_ks=(1,), submission="rc2")
    names = tuple(f"img{i}" for i in range(60))
    query = Query("65", 0, ("x",), rows(), subset=rows(3, 59, 4, 5, 6))
    part = Part("all", names, names, (query,))
    paths = write_submission(tmp_path / "new", plan, part, [np.arange(1, 51)], [rows(3, 59, 4, 5, 6)])
    recall, subset = (json.loads(path.read_text()) for path in paths)
    assert recall == {"65": list(names[1:51]), "version": "rc2", "metric": "recall"}
    assert subset == {"65": ["img3", "img59", "img4"], "version": "rc2", "metric": "recall_subset"}
