from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery, filters
from cir_infer.gallery.filters import parse
from tests.gallery.support import rows_of, vectors

# Few values, so that comparisons hit: numbers that are equal across types, text around them.
SCALARS = [
    0,
    1,
    1.0,
    -2,
    2.5,
    10,
    10**15,
    "",
    "a",
    "ab",
    "abc",
    "b",
    "1",
    "10",
    "Ä",
    "\U0010ffff",
    True,
    False,
]
FIELDS = ["f", "g", "a.b", "odd name"]

values = st.sampled_from(SCALARS)
metadata = st.dictionaries(
    st.sampled_from(["f", "g", "odd name", "a"]),
    st.one_of(st.none(), values, st.lists(values, max_size=3), st.fixed_dictionaries({"b": values})),
    max_size=3,
)
conditions = st.one_of(
    values,
    st.none(),
    st.lists(st.one_of(values, st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), values, min_size=1, max_size=2),
    st.fixed_dictionaries({"prefix": st.sampled_from(["", "a", "ab", "Ä", "\U0010ffff"])}),
    st.fixed_dictionaries({"null": st.booleans()}),
    st.fixed_dictionaries({"not in": st.lists(values, max_size=3)}),
)
expressions = st.recursive(
    st.dictionaries(st.sampled_from(FIELDS), conditions, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, max_size=3)}),
    ),
    max_leaves=6,
)


def attributes(data: dict[str, Any], field: str) -> list[Any]:
    """The meaning of a field, told independently of the implementation."""
    value = (
        data.get("a", {}).get("b") if field == "a.b" and isinstance(data.get("a"), dict) else data.get(field)
    )
    if field == "a" and isinstance(value, dict):
        return []
    flat = value if isinstance(value, list) else [value]
    return [v for v in flat if v is not None and not isinstance(v, dict)]


def compare(held: list[Any], operator: str, value: Any) -> bool:
    if value is None and operator in ("=", "!="):
        return (not held) == (operator == "=")
    if operator == "!=":
        return not compare(held, "=", value)
    if operator == "null":
        return (not held) == value
    if operator == "in":
        return any(compare(held, "=", v) for v in value)
    if operator == "not in":
        return not compare(held, "in", value)
    same = [v for v in held if isinstance(v, str) == isinstance(value, str)]
    test = {
        "=": lambda v: v == value,
        "<": lambda v: v < value,
        "<=": lambda v: v <= value,
        ">": lambda v: v > value,
        ">=": lambda v: v >= value,
        "prefix": lambda v: v.startswith(value),
    }[operator]
    return any(test(v) for v in same)


def matches(data: dict[str, Any], where: dict[str, Any]) -> bool:
    for field, condition in where.items():
        if field == "$not":
            good = not matches(data, condition)
        elif field == "$and":
            good = all(matches(data, part) for part in condition)
        elif field == "$or":
            good = any(matches(data, part) for part in condition)
        elif isinstance(condition, dict):
            good = all(compare(attributes(data, field), op, value) for op, value in condition.items())
        elif isinstance(condition, list):
            good = compare(attributes(data, field), "in", condition)
        else:
            good = compare(attributes(data, field), "=", condition)
        if not good:
            return False
    return True


@settings(derandomize=True, max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(metadata, min_size=1, max_size=20), st.lists(expressions, min_size=1, max_size=20))
def test_a_filter_selects_what_its_meaning_says(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict], wheres: list[dict]
) -> None:
    with Gallery.create(tmp_path_factory.mktemp("filters") / "g", dimension=8) as gallery:
        half = len(items) // 2
        ids = [str(number) for number in range(len(items))]
        rows = vectors(len(items))
        if half:
            gallery.add_vectors(ids=ids[:half], vectors=rows[:half], metadata=items[:half])
            for where in wheres:  # answers that are cached now have to grow with the gallery
                gallery.snapshot().where(where)
        gallery.add_vectors(ids=ids[half:], vectors=rows[half:], metadata=items[half:])
        gallery.remove(ids[:1])
        snapshot = gallery.snapshot()
        for where in wheres:
            expected = [row for row in range(1, len(items)) if matches(items[row], where)]
            assert rows_of(snapshot.where(where), len(items)) == expected, where
            assert snapshot.matching(where) == len(expected)


@pytest.mark.parametrize(
    ("text", "equal"),
    [
        ("category = dress", {"category": "dress"}),
        ("category == 'dress'", {"category": "dress"}),
        ("price<50 and price >= 10", {"$and": [{"price": {"<": 50}}, {"price": {">=": 10}}]}),
        ("a = 1 or b = 2 and c = 3", {"$or": [{"a": 1}, {"$and": [{"b": 2}, {"c": 3}]}]}),
        ("(a = 1 or b = 2) and c = 3", {"$and": [{"$or": [{"a": 1}, {"b": 2}]}, {"c": 3}]}),
        ("not a = 1", {"$not": {"a": 1}}),
        ("NOT (a = 1 AND b = 2)", {"$not": {"$and": [{"a": 1}, {"b": 2}]}}),
        ('brand in (acme, "Tom & Co", 3)', {"brand": ["acme", "Tom & Co", 3]}),
        ("brand not in (acme)", {"brand": {"not in": ["acme"]}}),
        ("brand in ()", {"brand": []}),
        ("note is null", {"note": None}),
        ("note is not null", {"note": {"null": False}}),
        ("colour prefix 'light '", {"colour": {"prefix": "light "}}),
        ("size.height >= -3.5e1", {"size.height": {">=": -35.0}}),
        ("'odd name' != true", {"odd name": {"!=": True}}),
        ("x = '10'", {"x": "10"}),
        ("x = 10", {"x": 10}),
        ("x = 'it\\'s'", {"x": "it's"}),
        ("x = 'and'", {"x": "and"}),
        ("größe = mittel", {"größe": "mittel"}),
    ],
)
def test_text_means_the_same_as_a_dictionary(text: str, equal: dict) -> None:
    assert parse(text) == parse(equal)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "a field's name at character 1, found the end"),
        ("price", "an operator after 'price'"),
        ("price <", "a value at character 8"),
        ("price < 5 and", "a field's name"),
        ("price < 5 price > 2", "and, or, or the end"),
        ("(price < 5", r"'\)'"),
        ("price ~ 5", "found '~ 5'"),
        ("x = 'open", "into quotes"),
        ("x is 5", "'null'"),
        ("x in 5", r"'\('"),
        ("and = 5", "a field's name"),
        ("(" * 100 + "x = 1" + ")" * 100, "nested more than 64"),
        ("not " * 100 + "x = 1", "nested more than 64"),
        ("x in (" + ",".join("1" * 20_000) + ")", "more than 10,000"),
        ("x = " + "y" * 200_000, "at most 100,000"),
        (7, "expected a dictionary"),
        ({"x": {"~": 1}}, "unknown operator '~'"),
        ({"x": object()}, "compared with"),
        ({"x": float("nan")}, "compared with"),
        ({"x": {"<": None}}, "compared with None"),
        ({"x": {"in": "abc"}}, "takes a list"),
        ({"x": {"prefix": 5}}, "takes text"),
        ({"x": {"null": 1}}, "true or false"),
        ({"$or": {"x": 1}}, "list of dictionaries"),
        ({"$nor": []}, "names the field '\\$nor'"),
        ({5: 1}, "names the field 5"),
        ({"x": "\ud800"}, "not valid Unicode"),
        ({"\ud800": 1}, "not valid Unicode"),
    ],
)
def test_a_malformed_filter_is_a_usage_error(where: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(where)


def test_a_deep_dictionary_is_refused() -> None:
    where: dict[str, Any] = {"x": 1}
    for _ in range(500):
        where = {"$not": where}
    with pytest.raises(UsageError, match="nested more than"):
        parse(where)


def test_quotes_and_sql_in_values_are_values(tmp_path: Path) -> None:
    nasty = ["'; DROP TABLE items; --", 'x" OR 1=1', "%", "_", "\x00", "a' OR 'a'='a"]
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(
        ids=nasty, vectors=vectors(len(nasty)), metadata=[{text: text, "v": text} for text in nasty]
    )
    snapshot = gallery.snapshot()
    for row, text in enumerate(nasty):
        assert rows_of(snapshot.where({text: text}), len(nasty)) == [row]
        assert rows_of(snapshot.where({"v": text}), len(nasty)) == [row]
        assert snapshot.row(text) == row
    assert gallery.verify().ok


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


def test_cached_answers_stay_within_their_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "_CACHE_BYTES", 1000)
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(
        ids=[str(n) for n in range(99)], vectors=vectors(99), metadata=[{"n": n} for n in range(99)]
    )
    snapshot = gallery.snapshot()
    for bound in range(99):
        assert snapshot.matching({"n": {"<": bound}}) == bound
    assert sum(answer.keys.nbytes for answer in gallery._store._cache._answers.values()) <= 1000
