"""Hits: pleasant to index and to print."""

from __future__ import annotations

import copy
import pickle

import pytest

from cir_infer import Hit, Hits
from cir_infer.console.tables import format_table


def hits(count: int = 3) -> Hits:
    return Hits(
        Hit(
            f"sku-{i}",
            i + 1,
            1.5 - i / 10,
            {"implicit_similarity": 1.0 - i / 10, "explicit_matching": 0.5},
            {"colour": "red"},
            f"{i}.png",
        )
        for i in range(count)
    )


def test_a_sequence() -> None:
    answer = hits()
    assert len(answer) == 3
    assert answer[0].id == "sku-0"
    assert answer[-1].rank == 3
    assert isinstance(answer[:2], Hits)
    assert answer[1:].ids == ["sku-1", "sku-2"]
    assert answer.scores == [1.5, 1.4, 1.3]
    assert answer[1] in answer
    assert [hit.id for hit in answer] == answer.ids
    with pytest.raises(IndexError):
        answer[3]


def test_terms_are_attributes() -> None:
    hit = hits()[1]
    assert hit.implicit_similarity == hit.terms["implicit_similarity"] == 0.9
    with pytest.raises(AttributeError, match="explicit_matching"):
        hit.colour  # noqa: B018
    assert not hasattr(Hit("a"), "implicit_similarity")


def test_hits_travel() -> None:
    answer = hits()
    assert pickle.loads(pickle.dumps(answer)) == answer
    assert copy.deepcopy(answer) == answer
    assert len({*answer, *hits()}) == 3


def test_printed_as_a_table() -> None:
    lines = repr(hits()).splitlines()
    assert lines[0].split() == [
        "rank",
        "score",
        "implicit",
        "similarity",
        "explicit",
        "matching",
        "id",
        "metadata",
    ]
    assert lines[2].split() == ["1", "1.5000", "1.0000", "0.5000", "sku-0", "colour:", "red"]
    assert len(lines) == 5
    assert repr(Hits([])) == "no hits"


def test_one_term_is_the_score_and_is_not_printed_twice() -> None:
    text = repr(Hits([Hit("a", 1, 0.5, {"similarity": 0.5})]))
    assert text.splitlines()[0].split() == ["rank", "score", "id"], "an empty column is left out"


def test_wide_letters_keep_the_columns_straight() -> None:
    lines = format_table(
        ["id", "n"], [["深い赤", "1"], ["e\u0301", "2"], ["abc", "10"]], right=[1]
    ).splitlines()
    assert lines == ["id       n", "------  --", "深い赤   1", "e\u0301        2", "abc     10"]
