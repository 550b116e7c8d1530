"""Numbers in filters compare exactly, whole ones and floats of any size, as text and as values."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.gallery import Gallery
from cir_infer.gallery.filters.filters import parse
from tests.gallery.support import rows_of, vectors

NEAR = sorted(
    {sign * (2**power + step) for sign in (1, -1) for power in (53, 62, 63, 64) for step in range(-3, 4)}
)


def test_numbers_compare_exactly(tmp_path: Path) -> None:
    stored: list[Any] = [n for n in NEAR if -(2**63) <= n < 2**63]
    stored += [float(n) for n in NEAR] + [0.1, np.nextafter(0.1, 1), 5e-324, -0.0, 1.7976931348623157e308]
    stored += [2.0**-24]  # of 16 digits as Python writes it, and just between two of these
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(
        ids=[str(n) for n in range(len(stored))],
        vectors=vectors(len(stored)),
        metadata=[{"n": n} for n in stored],
    )
    snapshot = gallery.snapshot()
    held = [Fraction(n) for n in stored]
    literals = [
        *NEAR,
        *map(float, NEAR),
        0.1,
        0,
        2.0**-24,
        5e-324,
        10**19,
        10**308,
        10**309,
        -(10**309),
        True,
    ]
    for literal in literals:
        exact = Fraction(literal)
        expected = {
            "=": [n for n, value in enumerate(held) if value == exact],
            "<": [n for n, value in enumerate(held) if value < exact],
            "<=": [n for n, value in enumerate(held) if value <= exact],
            ">": [n for n, value in enumerate(held) if value > exact],
            ">=": [n for n, value in enumerate(held) if value >= exact],
        }
        for operator, rows in expected.items():
            assert rows_of(snapshot.where({"n": {operator: literal}}), len(stored)) == rows, (
                operator,
                literal,
            )
            if type(literal) is not bool:
                text = f"n {operator} {literal!r}"
                assert rows_of(snapshot.where(text), len(stored)) == rows, text
    assert gallery.verify().ok


NUMBERS = st.one_of(
    st.integers(-(2**66), 2**66),
    st.sampled_from(NEAR),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**66), 2**66).map(float),
    st.integers(-1000, 1000).map(lambda n: n / 8),
)


@settings(max_examples=30)
@given(st.lists(NUMBERS, min_size=20, max_size=60), st.lists(NUMBERS, min_size=20, max_size=60))
def test_any_numbers_compare_exactly(
    tmp_path_factory: pytest.TempPathFactory, stored: list[float], literals: list[float]
) -> None:
    stored = [n for n in [*stored, *literals] if isinstance(n, float) or -(2**63) <= n < 2**63]
    count = len(stored)
    with Gallery.create(tmp_path_factory.mktemp("numbers") / "g", dimension=8) as gallery:
        gallery.add_vectors(
            ids=[str(n) for n in range(count)], vectors=vectors(count), metadata=[{"n": n} for n in stored]
        )
        snapshot = gallery.snapshot()
        for literal in literals:
            exact = Fraction(literal)
            less = [row for row in range(count) if Fraction(stored[row]) < exact]
            equal = [row for row in range(count) if Fraction(stored[row]) == exact]
            for where in ({"n": {"<": literal}}, f"n < {literal!r}", {"$not": {"n": {">=": literal}}}):
                assert rows_of(snapshot.where(where), count) == less
            for where in ({"n": literal}, f"n in ({literal!r})", {"n": {"<=": literal, ">=": literal}}):
                assert rows_of(snapshot.where(where), count) == equal


@settings(max_examples=300)
@given(st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_number_as_text_is_the_number(value: float) -> None:
    assert parse(f"n = {value!r}") == parse({"n": value})
    assert parse(f"n >= {value:+}") == parse({"n": {">=": value}})
    if value == int(value):
        # Whole numbers are exact however they are written.
        assert parse(f"n < {int(value)}") == parse({"n": {"<": int(value)}}) == parse({"n": {"<": value}})


def test_whole_numbers_stay_exact(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    big = [2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
    gallery.add_vectors(ids=list("abcd"), vectors=vectors(4), metadata=[{"n": n} for n in big])
    snapshot = gallery.snapshot()
    assert [rows_of(snapshot.where({"n": n}), 4) for n in big] == [[0], [1], [2], [3]]
    assert rows_of(snapshot.where({"n": {">": 2**53}}), 4) == [1, 2]
    assert snapshot.matching({"n": {"<": 2**80}}) == 4 and snapshot.matching({"n": 2**80}) == 0
    assert (
        snapshot.matching({"n": np.int64(2**53)}) == 1 and snapshot.matching({"n": {"<": float("inf")}}) == 4
    )
