"""More of one term, less of another: exact, refused where it means nothing, unchanged where it is absent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer import Engine, Searcher
from cir_infer.commands.query import main
from cir_infer.drawing.sheet import contact_sheet
from cir_infer.errors import UsageError
from cir_infer.scoring.balance import balanced, checked_balance
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.linearised import LinearisedScorer
from cir_infer.scoring.reference import ReferenceScorer
from tests.emulation.emulated import EmulatedDevice
from tests.scoring.cases import check_topk, random_terms

IS, EM = "implicit_similarity", "explicit_matching"


@pytest.mark.parametrize("scorer", ["reference", "cpu"])
def test_the_score_is_the_sum_of_the_weighted_terms(
    engine: Engine, gallery_path: Path, pictures: list[Path], scorer: str
) -> None:
    with Searcher(engine, gallery_path, scorer=scorer) as searcher:
        plain = {hit.id: hit for hit in searcher.query(pictures[3], "is red", k=40)}

        @settings(max_examples=25)
        @given(st.floats(-50, 50).filter(lambda f: abs(f) > 1e-3), st.floats(0, 50, exclude_min=True))
        def check(first: float, second: float) -> None:
            factors = {IS: first, EM: max(second, 1e-3)}
            hits = searcher.query(pictures[3], "is red", k=40, balance=factors)
            assert hits.balance == factors
            for hit in hits:
                for name, factor in factors.items():
                    assert hit.terms[name] == pytest.approx(factor * plain[hit.id].terms[name], rel=1e-5)
                assert hit.score == pytest.approx(sum(hit.terms.values()), rel=1e-5, abs=1e-5)
            assert hits.scores == sorted(hits.scores, reverse=True)

        check()


def test_a_factor_of_one_and_no_factor_change_nothing(searcher: Searcher, pictures: list[Path]) -> None:
    plain = searcher.query(pictures[0], "is red", k=40)
    assert plain.balance == {}
    for balance in (None, {}, {IS: 1}, {IS: 1.0, EM: np.float32(1)}):
        hits = searcher.query(pictures[0], "is red", k=40, balance=balance)
        assert [(hit.id, hit.score, hit.terms) for hit in hits] == [
            (hit.id, hit.score, hit.terms) for hit in plain
        ], "to the bit"


def test_a_term_that_is_left_out_says_nothing(searcher: Searcher, pictures: list[Path]) -> None:
    plain = searcher.query(pictures[0], "is red", k=40)
    words = searcher.query(pictures[0], "is red", k=40, balance={IS: 0})
    assert words.ids == [hit.id for hit in sorted(plain, key=lambda hit: -hit.terms[EM])]
    assert all(hit.implicit_similarity == 0 for hit in words)
    opposite = searcher.query(pictures[0], "is red", k=40, balance={IS: -1, EM: 0})
    assert opposite.ids == [hit.id for hit in sorted(plain, key=lambda hit: hit.terms[IS])]


def test_every_way_to_ask_takes_it(searcher: Searcher, pictures: list[Path]) -> None:
    balance = {EM: 3.0}
    expected = searcher.query(pictures[2], "is red", k=7, balance=balance)
    assert expected.ids != searcher.query(pictures[2], "is red", k=7).ids
    assert asyncio.run(searcher.aquery(pictures[2], "is red", k=7, balance=balance)) == expected
    (batch,) = searcher.query_batch([pictures[2]], ["is red"], k=7, balance=balance)
    assert batch.ids == expected.ids and batch.balance == balance
    refined = searcher.query(expected[0], "is blue", k=5, balance=balance)
    plain = {hit.id: hit for hit in searcher.query(expected[0], "is blue", k=40)}
    assert refined[0].explicit_matching == pytest.approx(3 * plain[refined[0].id].explicit_matching, rel=1e-6)
    without = searcher.query(pictures[2], "is red", k=7, balance=balance, exclude_reference=True)
    assert without.balance == balance and "sku-2" not in without.ids


def test_the_hits_say_so(searcher: Searcher, pictures: list[Path]) -> None:
    hits = searcher.query(pictures[0], "is red", k=3, balance={IS: 1.5})
    assert "implicit similarity x 1.5" in repr(hits) and "explicit matching  " in repr(hits)
    assert hits[:2].balance == {IS: 1.5}
    plain = searcher.query(pictures[0], "is red", k=3)
    # The legend is longer by the factor.
    said, silent = contact_sheet(pictures[0], "is red", hits), contact_sheet(pictures[0], "is red", plain)
    assert np.asarray(said).shape == np.asarray(silent).shape
    assert not np.array_equal(np.asarray(said)[600:, :600], np.asarray(silent)[600:, :600])


@pytest.mark.parametrize(
    ("balance", "said"),
    [
        ({"similarity": 2}, "balance names a term 'similarity'; this system's terms are implicit_sim"),
        ({3: 2}, "balance names a term 3"),
        ({IS: float("nan")}, "balance of implicit_similarity is nan; expected 0 or a number"),
        ({IS: float("inf")}, "is inf"),
        ({IS: 1e7}, "is 10000000.0"),
        ({IS: 1e-9}, "is 1e-09"),
        ({IS: "2"}, "is '2'"),
        ({IS: True}, "is True"),
        ({IS: None}, "is None"),
        ({IS: 0, EM: 0}, "takes every term out"),
        ([IS], r"balance is \['implicit_similarity'\]; expected factors by the names of terms"),
        (1.5, "balance is 1.5"),
        ({f"term{i}": 1 for i in range(100_000)}, "balance names a term 'term0'"),
    ],
)
def test_what_means_nothing_is_refused(
    searcher: Searcher, pictures: list[Path], balance: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        searcher.query(pictures[0], "is red", balance=balance)
    assert len(str(caught.value)) < 400
    with pytest.raises(UsageError, match=said):
        searcher.query_batch([pictures[0]], ["is red"], balance=balance)


def test_every_scorer_answers_balanced_terms_alike() -> None:
    random = np.random.default_rng(4)
    rows = Rows.of(random.standard_normal((600, 40)).astype(np.float16))
    terms = random_terms(random, 3, 2, 40, True)
    named = balanced(terms, {terms.names[0]: -2.5, terms.names[1]: 40.0})
    np.testing.assert_array_equal(named.numerators[:, 0], terms.numerators[:, 0] * np.float32(-2.5))
    exact = ReferenceScorer(rows)
    every = LinearisedScorer(exact, rows, lambda queries, _: np.tile(np.arange(600), (len(queries), 1)))
    with CudaScorer(rows, device=EmulatedDevice()) as cuda:
        for scorer in (exact, every, cuda):
            check_topk(scorer.topk(named, 12), named, rows, 12)


def test_one_term_may_be_turned_but_not_left_out() -> None:
    assert checked_balance({"similarity": -1}, ("similarity",)) == {"similarity": -1.0}
    with pytest.raises(UsageError, match="every term"):
        checked_balance({"similarity": 0}, ("similarity",))


def test_the_command(bundle: Path, gallery_path: Path, pictures: list[Path], capsys: Any) -> None:
    asked = [str(bundle), str(pictures[0]), "is red", "-k", "3"]
    assert main([*asked, "--balance", f"{IS}=1.5", "--balance", f"{EM}=-2e0", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["balance"] == {IS: 1.5, EM: -2.0}
    assert answer["hits"][0]["score"] == pytest.approx(sum(answer["hits"][0]["terms"].values()), abs=1e-6)
    for wrong in (IS, f"{IS}=", f"{IS}=much", "=2", f"{IS}=nan", "colour=2"):
        assert main([*asked, "--balance", wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert main([*asked, "--balance", f"{IS}=1", "--balance", f"{IS}=2"]) == 2
    assert "twice" in capsys.readouterr().err
