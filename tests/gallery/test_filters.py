"""A filter selects what its meaning says, as text and as a dictionary; a malformed one is refused."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.gallery.filters import conditions as conditions_module
from cir_infer.gallery.filters.filters import parse
from tests.gallery.support import rows_of, vectors

BIG = 2**53
UTC = timezone.utc
EAST = timezone(timedelta(hours=2))

# Few values, so that comparisons hit: numbers equal or close across types, text around them, times.
SCALARS = [
    0, 1, 1.0, -0.0, -2, 2.5, 10, 0.1, 1e-300, BIG, BIG + 1, float(BIG), BIG + 2, 2**63 - 1, -(2**63),
    2.0**63, -(2.0**63), 1e19, 1.5e300, np.float32(0.1), np.int64(BIG + 1), np.uint8(10), np.bool_(True),
    Decimal("0.1"), Decimal("10.00"),
    "", "a", "ab", "abc", "b", "1", "10", "Ä", "\U0010ffff", np.str_("ab"), True, False,
    date(2024, 5, 17), datetime(2024, 5, 17), datetime(2024, 5, 17, 9, 30), np.datetime64("2024-05-17"),
    np.datetime64("2024-05-17T09:30:00.25"), datetime(2024, 5, 17, 9, 30, tzinfo=UTC),
    datetime(2024, 5, 17, 11, 30, tzinfo=EAST), datetime(2024, 5, 17, 9, 30, 0, 250_000, UTC), time(9, 30),
]  # fmt: skip
LITERALS = [*SCALARS, 2**63, 2**64, 2**64 + 1, 10**19, 10**19 + 1, -(2**63) - 1, -(10**400), 10**400, 1e308,
            float("inf"), float("-inf"), np.uint64(2**63)]  # fmt: skip
FIELDS = ["f", "g", "a.b", "odd name"]

values = st.sampled_from(SCALARS)
literals = st.sampled_from(LITERALS)
metadata = st.dictionaries(
    st.sampled_from(["f", "g", "odd name", "a"]),
    st.one_of(st.none(), values, st.lists(values, max_size=3), st.fixed_dictionaries({"b": values})),
    max_size=3,
)
conditions = st.one_of(
    literals,
    st.none(),
    st.lists(st.one_of(literals, st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), literals, min_size=1, max_size=3),
    st.fixed_dictionaries({"prefix": st.sampled_from(["", "a", "ab", "Ä", "\U0010ffff", "2024-05-17T09"])}),
    st.fixed_dictionaries({"null": st.booleans()}),
    st.fixed_dictionaries({"not in": st.lists(literals, max_size=3)}),
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


def meaning(value: Any) -> Any:
    """A value as what compares: an exact fraction, an infinity or a text, told independently."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.datetime64):
        value = value.item()
    if isinstance(value, datetime):
        text = f"{value.astimezone(UTC) if value.tzinfo else value:%Y-%m-%dT%H:%M:%S}"
        text += f".{value.microsecond:06d}" if value.microsecond else ""
        return text + ("+00:00" if value.tzinfo else "")
    if isinstance(value, date):
        return f"{value:%Y-%m-%d}"
    if isinstance(value, time):
        return f"{value:%H:%M:%S}"
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal):
        value = float(value)
    return value if isinstance(value, float) and math.isinf(value) else Fraction(value)


def attributes(data: dict[str, Any], field: str) -> list[Any]:
    """The meaning of a field, told independently of the implementation."""
    value = (
        data.get("a", {}).get("b") if field == "a.b" and isinstance(data.get("a"), dict) else data.get(field)
    )
    if field == "a" and isinstance(value, dict):
        return []
    flat = value if isinstance(value, list) else [value]
    return [meaning(v) for v in flat if v is not None and not isinstance(v, dict)]


def compare(held: list[Any], operator: str, value: Any) -> bool:
    if value is None and operator in ("=", "!="):
        return (not held) == (operator == "=")
    if operator == "!=":
        return not compare(held, "=", value)
    if operator == "null":
        return (not held) == bool(value)
    if operator == "in":
        return any(compare(held, "=", v) for v in value)
    if operator == "not in":
        return not compare(held, "in", value)
    value = meaning(value)
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


@settings(max_examples=20)
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
        ("n = -9223372036854775808", {"n": -(2**63)}),
        ("n in (+1234567890123456789, 0001)", {"n": [1234567890123456789, 1]}),
        ("n < 36893488147419103232.0", {"n": {"<": 2**65}}),
        ("n = 9007199254740993.0", {"n": 2**53 + 1}),
        ("n = 1e3 or n = 1e400", {"n": [1000, 10**400]}),
        ("n > 1e999999999999", {"n": {">": 10**5000}}),
        ("n = 0.1", {"n": 0.1}),
        ("n = 0.10000000000000001", {"n": 0.1}),
        ("n = .5 or n = 5.", {"n": [0.5, 5]}),
        ("taken >= 2024-05-17", {"taken": {">=": date(2024, 5, 17)}}),
        ("taken < 2024-05-17T09:30", {"taken": {"<": datetime(2024, 5, 17, 9, 30)}}),
        ("taken = 2024-05-17T11:30:00.5+02:00", {"taken": datetime(2024, 5, 17, 9, 30, 0, 500_000, UTC)}),
        ("taken = 2024-05-17t09:30:00Z", {"taken": datetime(2024, 5, 17, 9, 30, tzinfo=UTC)}),
        ("taken = 2024-05-17T00:00:00.000000001", {"taken": np.datetime64("2024-05-17T00:00:00.000000001")}),
        ("at in (09:30, 10:00:00.25)", {"at": [time(9, 30), time(10, 0, 0, 250_000)]}),
        ("taken prefix 2024", {"taken": {"prefix": "2024"}}),
        ("taken prefix 2024-05-17T09:30", {"taken": {"prefix": "2024-05-17T09:30"}}),
        ("taken = '09:30'", {"taken": "09:30"}),
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
        (
            " or ".join(["x < 1"] * 10_001),
            "more than 10,000 comparisons; compare one field with many values by in",
        ),
        ("x = " + "y" * 5_000_000, "at most 4,000,000"),
        ({"$and": [{"x": n, "y": n} for n in range(3000)]}, "more than 2,000 groups"),
        ("x = 3.14159265358979323846", "says other digits"),
        ("x = 9007199254740992.5", "says other digits"),
        ("x = 1e-400", "says other digits"),
        ("x = " + "1" * 2000, "number of up to 1,000 characters"),
        ("x = 2024-02-30T10:00", "at character 5 is '2024-02-30T10:00', which is no time"),
        ("x = 25:00", "no time"),
        ("x = 10:00Z", "no order"),
        ("x = 10:00:00:00", "expected a time such as"),
        ("x = 0001-01-01T00:00+05:00", "no time"),
        (7, "expected a dictionary"),
        ({"x": {"~": 1}}, "unknown operator '~'"),
        ({"x": object()}, "compared with"),
        ({"x": float("nan")}, "ask whether it is null"),
        ({"x": [1, np.datetime64("NaT")]}, "ask whether it is null"),
        # What lies under a mask was never meant to be used.
        ({"x": np.ma.array([1, 2], mask=[0, 1])}, "ask whether it is null"),
        ({"x": {"in": np.ma.array(["a", "b"], mask=[0, 1])}}, "ask whether it is null"),
        ({"x": {"<": np.ma.array(3, mask=True)}}, "ask whether it is null"),
        ({"x": np.ma.masked}, "ask whether it is null"),
        ({"x": b"abc"}, "'x' is bytes"),
        ({"x": [b"abc"]}, "'x' is bytes"),
        ({"x": 1j}, "of type complex"),
        ({"x": timedelta(1)}, "length of time"),
        ({"x": time(9, tzinfo=UTC)}, "no order"),
        ({"x": Decimal("0.12345678901234567890123")}, "says other digits"),
        ({"x": {"in": np.ones((2, 2))}}, "takes a list"),
        ({"$or": 10**6000}, "list of dictionaries"),
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


@pytest.mark.parametrize("form", ["text", "dictionary"])
def test_values_are_counted(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert conditions_module.MAX_VALUES == 1_000_000
    monkeypatch.setattr(conditions_module, "MAX_VALUES", 1000)

    def asked(count: int) -> Any:
        return {"x": [*range(count)]} if form == "dictionary" else f"x in ({','.join('1' * count)})"

    parse(asked(1000))
    with pytest.raises(UsageError, match="more than 1,000 values"):
        parse(asked(1001))


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
