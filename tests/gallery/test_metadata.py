"""What is taken at one door comes out again from every other; what is not is refused by name."""

from __future__ import annotations

import enum
import json
import logging
from collections import OrderedDict, UserDict, deque
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import CirError, GalleryError, UsageError
from cir_infer.gallery import Gallery
from cir_infer.gallery.metadata.metadata import MAX_DEPTH, attributes_of, decode, encode
from tests.gallery.support import filled, rows_of, vectors


class Colour(str, enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


class Loud(str):
    def __str__(self) -> str:
        return "LOUD"


class Lazy(Mapping):
    """A dictionary of somebody else's that fails while it is read."""

    def __getitem__(self, key: Any) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


UTC = timezone.utc
EAST = timezone(timedelta(hours=5, minutes=30))
KEPT = [
    (Colour.RED, "red"),
    (Size.LARGE, 3),
    (Loud("soft"), "soft"),
    (np.str_("red"), "red"),
    (np.bool_(True), True),
    (np.int8(-3), -3),
    (np.uint64(2**63 - 1), 2**63 - 1),
    (np.float16(0.5), 0.5),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64(0.1), 0.1),
    (np.longdouble(0.5), 0.5),
    (np.array(7), 7),
    (Decimal("19.99"), 19.99),
    (Decimal("20.00"), 20),
    (Decimal(2**62), 2**62),
    (-0.0, -0.0),
    (date(2024, 5, 17), "2024-05-17"),
    (datetime(2024, 5, 17), "2024-05-17T00:00:00"),
    (datetime(99, 1, 1, 9, 30, 0, 5), "0099-01-01T09:30:00.000005"),
    (datetime(2024, 5, 17, 9, 30, tzinfo=UTC), "2024-05-17T09:30:00+00:00"),
    (datetime(2024, 5, 17, 1, 30, tzinfo=EAST), "2024-05-16T20:00:00+00:00"),
    (time(9, 30, 0, 250_000), "09:30:00.250000"),
    (np.datetime64("2024"), "2024-01-01"),
    (np.datetime64("2024-05-17"), "2024-05-17"),
    (np.datetime64("2024-05-17T09"), "2024-05-17T09:00:00"),
    (np.datetime64("2024-05-17T09:30:00.250"), "2024-05-17T09:30:00.250000"),
    (np.datetime64("2024-05-17T09:30:00.000000000"), "2024-05-17T09:30:00"),
    (np.datetime64("2024-05-17T09:30:00.000000001"), "2024-05-17T09:30:00.000000001"),
    ("a\x00b", "a\x00b"),
    ("\U0010ffff", "\U0010ffff"),
    ((1, 2), [1, 2]),
    ({3, 1, 2.5, "b", "a"}, [1, 2.5, 3, "a", "b"]),
    (frozenset(), []),
    (deque([1]), [1]),
    (range(3), [0, 1, 2]),
    ({"b": 1}.keys(), ["b"]),
    (np.array([1, 2], np.uint8), [1, 2]),
    (np.array([[1.5], [2.5]]), [[1.5], [2.5]]),
    (np.array(["2024-05-17"], "datetime64[D]"), ["2024-05-17"]),
    (np.array(["a", None], object), ["a", None]),
    (np.ma.array([1, 2], mask=[False, True]), [1, None]),
    (np.ma.array([[1.5], [2.5]], mask=[[True], [False]]), [[None], [2.5]]),
    (np.ma.array(["2024-05-17"], "datetime64[D]"), ["2024-05-17"]),
    (np.ma.array(7), 7),
    (OrderedDict(a=1), {"a": 1}),
    (UserDict(a=np.int64(1)), {"a": 1}),
    (MappingProxyType({"a": {"b": (1,)}}), {"a": {"b": [1]}}),
    ({np.str_("k"): 1, Colour.RED: 2}, {"k": 1, "red": 2}),
    ({"": 1}, {"": 1}),
]


@pytest.mark.parametrize(("value", "plain"), KEPT, ids=[str(number) for number in range(len(KEPT))])
def test_values_of_many_types_become_plain_ones(tmp_path: Path, value: Any, plain: Any) -> None:
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        gallery.add_vectors(ids=["a", "b"], vectors=vectors(2), metadata=[{"x": value}, {"y": 1}])
        found = gallery.snapshot().metadata([0])[0]["x"]
        assert repr(found) == repr(plain)
        if not isinstance(plain, (list, dict)):
            # The very value that was given finds it, and so does what came out.
            for literal in (value, found, [value], {"=": value}):
                assert rows_of(gallery.snapshot().where({"x": literal}), 2) == [0]
        gallery.export(tmp_path / "out.safetensors")
        gallery.export(tmp_path / "folder")
        assert gallery.verify().ok
    for source in ("out.safetensors", "folder"):
        with Gallery.import_from(tmp_path / f"again-{source}", tmp_path / source) as again:
            assert again.snapshot().metadata([0]) == [{"x": plain}]


LOOP: dict[str, Any] = {}
LOOP["me"] = [LOOP]
DEEP: Any = 1
for _ in range(MAX_DEPTH + 1):
    DEEP = [DEEP]
WIDE: Any = ["x"] * 100
for _ in range(10):
    WIDE = [WIDE] * 100


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"x": float("inf")}, "field 'x' is inf; expected a finite number"),
        ({"x": np.float32("-inf")}, "field 'x' is -inf"),
        ({"x": Decimal("Infinity")}, "field 'x' is inf"),
        ({"x": 2**63}, "field 'x' is 9223372036854775808; expected a whole number of at most 64 bits"),
        ({"x": np.uint64(2**64 - 1)}, "at most 64 bits"),
        ({"x": 10**6000}, "whole number of 19,932 bits; expected"),
        ({"x": Decimal("1E+19")}, "at most 64 bits"),
        ({"x": Decimal("0.1234567890123456789")}, "says other digits"),
        ({"x": np.longdouble(1) / 3}, "field 'x' is .* no 64-bit float holds"),
        ({"x": {"y": [b"abc"]}}, "field 'x.y' is bytes .*decode"),
        ({"x": bytearray(b"abc")}, "is bytes"),
        ({"x": np.bytes_(b"abc")}, "is bytes"),
        ({"x": 1j}, "of type complex"),
        ({"x": np.complex64(1)}, "of type complex64"),
        ({"x": timedelta(1)}, "length of time"),
        ({"x": np.timedelta64(1, "s")}, "length of time"),
        ({"x": time(9, tzinfo=UTC)}, "no order"),
        ({"x": datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))}, "cannot be given in UTC"),
        ({"x": np.datetime64("-0001-01-01")}, "expected a year"),
        ({"x": np.datetime64("10000-01-01")}, "expected a year"),
        ({"x": "a\ud800"}, "field 'x' is text that is not valid Unicode"),
        ({"a\ud800": 1}, "is not valid Unicode"),
        ({"": 1}, "a field is named ''"),
        ({1: 2}, "has the key 1; expected strings"),
        ({"x": {None: 2}}, "field 'x' has the key None"),
        ({"x" * 5000: 1}, "longer than 4,096 characters"),
        ({"x": object()}, "'x' is .* of type object; expected text, a number"),
        ({"x": Path("/a")}, "of type PosixPath"),
        ({"a.b": 1, "a": {"b": 2}}, "field 'a.b' is there twice"),
        ({"a": [{"b": {"c": 1}}, {"b.c": 2}]}, "field 'a.b.c' is there twice"),
        (LOOP, "field 'me.me.*' is nested more than 16 deep, or holds itself"),
        ({"x": DEEP}, "nested more than 16 deep"),
        ({"x": WIDE}, "at most 1,048,576 characters"),
        ({"x": np.zeros(2_000_000)}, "at most 1,048,576 characters"),
        ({"x": range(10**12)}, "at most 1,048,576 characters"),
        ({"x" * 10: "y" * 2_000_000}, "at most 1,048,576 characters"),
        (Lazy(), "reading it failed with KeyError"),
        ("text", "expected a dictionary"),
        ([], "expected a dictionary"),
        (0, "expected a dictionary"),
        (np.array([]), "expected a dictionary"),
    ],
)
def test_what_no_other_door_could_give_out_is_refused(tmp_path: Path, metadata: Any, message: str) -> None:
    with pytest.raises(GalleryError, match=f"(?s)metadata of id 'this'.*{message}") as caught:
        encode(metadata, "this")
    assert len(str(caught.value)) < 400
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        with pytest.raises(GalleryError, match=f"(?s)metadata of id 'this'.*{message}"):
            gallery.add_vectors(ids=["a", "this"], vectors=vectors(2), metadata=[None, metadata])
        assert len(gallery) == 0
    with pytest.raises(GalleryError, match="'this'"):
        Gallery.from_arrays(tmp_path / "f", ids=["a", "this"], vectors=vectors(2), metadata=[None, metadata])
    assert not (tmp_path / "f").exists()


def test_what_is_missing_is_absent_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing: list[Any] = [float("nan"), np.float32("nan"), np.datetime64("NaT"), Decimal("NaN")]
    missing += [np.ma.masked, np.ma.array(1, mask=True), None, [float("nan")]]
    caplog.set_level(logging.WARNING)
    name = f"missing {tmp_path}"
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        for number, value in enumerate([*missing, 1]):
            data = {name: value, "n": number}
            gallery.add_vectors(ids=[str(number)], vectors=vectors(1), metadata=[data])
        snapshot = gallery.snapshot()
        assert rows_of(snapshot.where({name: None}), 9) == list(range(8))
        assert rows_of(snapshot.where({name: {"!=": 1}}), 9) == list(range(8))
        assert snapshot.metadata([0, 4, 7]) == [{"n": 0}, {"n": 4}, {name: [None], "n": 7}]
        assert gallery.verify().ok
    assert sum("taken as absent" in record.message for record in caplog.records) == 1


def test_times_are_in_order_as_text() -> None:
    start = datetime(2024, 5, 17, 9, 30)
    steps = [0, 1, 999_999, 1_000_000, 10_000_000, 100_000_000, 3_600_000_000]
    moments: list[Any] = [start + timedelta(microseconds=step) for step in steps]
    moments += [
        np.datetime64(moment, "ns") + nanoseconds for moment in moments for nanoseconds in (0, 1, 999)
    ]
    texts = {np.datetime64(moment, "ns"): decode(encode({"t": moment}, "x").text)["t"] for moment in moments}
    assert sorted(texts.values()) == [texts[moment] for moment in sorted(texts)]
    aware = [moment.replace(tzinfo=EAST) for moment in moments[: len(steps)]]
    assert [datetime.fromisoformat(decode(encode({"t": moment}, "x").text)["t"]) for moment in aware] == aware


def test_dates_and_times_are_filtered(tmp_path: Path) -> None:
    taken = [date(2024, 5, 16), datetime(2024, 5, 17), datetime(2024, 5, 17, 9, 30), date(2024, 5, 18)]
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        gallery.add_vectors(ids=list("abcd"), vectors=vectors(4), metadata=[{"taken": t} for t in taken])
        snapshot = gallery.snapshot()
        for where in ({"taken": {">=": date(2024, 5, 17), "<": date(2024, 5, 18)}},
                      "taken >= 2024-05-17 and taken < 2024-05-18", "taken prefix 2024-05-17"):  # fmt: skip
            assert rows_of(snapshot.where(where), 4) == [1, 2]
        assert rows_of(snapshot.where("taken = 2024-05-17T09:30"), 4) == [2]


IDS = [
    ([1], "an id is 1, of type int; .*str()"),
    ([None], "of type NoneType"),
    ([b"a"], "of type bytes"),
    ([""], "non-empty string"),
    (["a" * 5000], "at most 4096 characters"),
    (["a\ud800"], "not valid Unicode"),
    (["a", np.str_("a")], "'a' comes twice"),
    (["a", Loud("a")], "'a' comes twice"),
]


@pytest.mark.parametrize(("ids", "message"), IDS)
def test_ids_that_nothing_could_ask_for_are_refused(tmp_path: Path, ids: list[Any], message: str) -> None:
    gallery = filled(tmp_path / "g", 0)
    with pytest.raises(GalleryError, match=message):
        gallery.add_vectors(ids=ids, vectors=vectors(len(ids)))
    with pytest.raises(GalleryError, match=message):
        Gallery.from_arrays(tmp_path / "f", ids=ids, vectors=vectors(len(ids)))
    with pytest.raises(GalleryError, match=message):
        gallery.remove(ids)
    assert len(gallery) == 0 and not (tmp_path / "f").exists()


@pytest.mark.parametrize("ids", ["ab", b"ab", {"a", "b"}, {"a": 1, "b": 2}, None, 5, Path("ab")])
def test_ids_that_are_no_list_are_a_usage_error(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(UsageError, match=r"ids is .*expected a list"):
        filled(tmp_path / "g", 0).add_vectors(ids=ids, vectors=vectors(2))


def test_ids_of_many_types_are_texts(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 0)
    gallery.add_vectors(ids=np.array(["a", "b"]), vectors=vectors(2))  # type: ignore[arg-type]
    gallery.add_vectors(ids=(item for item in [Colour.RED, Loud("x"), "a\x00b"]), vectors=vectors(3))  # type: ignore[arg-type]
    assert gallery.ids == ["a", "b", "red", "x", "a\x00b"]
    assert {type(item) for item in gallery.ids} == {str}
    assert gallery.remove({Colour.RED, np.str_("a")}) == 2  # type: ignore[arg-type]
    assert gallery.ids == ["b", "x", "a\x00b"]


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        ({"sources": [b"/x", None]}, GalleryError, "source of id 'a' is .* of type bytes"),
        ({"sources": ["/x", "/y\ud800"]}, GalleryError, "source of id 'b' .* valid Unicode"),
        ({"sources": ["/x\x00", None]}, GalleryError, "without NUL"),
        ({"sources": ["/x" * 100_000, None]}, GalleryError, "at most 65,536 characters"),
        ({"sources": [3, None]}, GalleryError, "of type int"),
        ({"sources": "ab"}, UsageError, "one string"),
        ({"sources": {"a": "/x", "b": "/y"}}, UsageError, "is a dict"),
        ({"sources": {"/x", "/y"}}, UsageError, "is a set"),
        ({"sources": ["/x"]}, GalleryError, "1 entries for 2 ids"),
        ({"stamps": [1, None]}, GalleryError, "stamp of id 'a' is 1"),
        ({"metadata": {"a": 1, "b": 2}}, UsageError, "metadata is a dict; expected a list of dictionaries"),
        ({"metadata": 5}, UsageError, "expected a list"),
        ({"metadata": [{}]}, GalleryError, "1 entries for 2 ids"),
    ],
)
def test_lists_beside_the_ids_are_checked(tmp_path: Path, columns: Any, kind: type, message: str) -> None:
    gallery = filled(tmp_path / "g", 0)
    with pytest.raises(kind, match=message):
        gallery.add_vectors(ids=["a", "b"], vectors=vectors(2), **columns)
    assert len(gallery) == 0


def test_sources_are_paths_of_any_kind(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 0)
    sources = iter([Path("/x/a.jpg"), Loud("/x/b.jpg"), None, float("nan")])
    gallery.add_vectors(ids=list("abcd"), vectors=vectors(4), sources=sources)  # type: ignore[arg-type]
    assert gallery.snapshot().sources([0, 1, 2, 3]) == ["/x/a.jpg", "/x/b.jpg", None, None]


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
        st.datetimes(timezones=st.one_of(st.none(), st.timezones())),
        st.dates(),
        st.times(),
        st.decimals(),
        st.complex_numbers(),
        st.binary(max_size=3),
        st.sampled_from([value for value, _ in KEPT]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text("ab.\x00é", max_size=3), inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=2), st.integers()), inner, max_size=2),
    ),
    max_leaves=8,
)
SUITE = settings(max_examples=60)


@SUITE
@given(st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=3), min_size=1, max_size=6))
def test_what_is_taken_comes_out_of_every_door(
    tmp_path_factory: pytest.TempPathFactory, metadata: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("doors")
    kept: list[dict[str, Any]] = []
    plain: list[dict[str, Any]] = []
    for data in metadata:
        try:
            encoded = encode(data, "x")
        except CirError as error:
            assert "'x'" in str(error) and len(str(error)) < 1000
        else:
            kept.append(data)
            plain.append(decode(encoded.text))
            # What came out is taken as it is, with the same attributes for filters.
            assert encode(plain[-1], "x") == encoded
            assert list(attributes_of(plain[-1])) == encoded.attributes
    with Gallery.create(folder / "g", dimension=8) as gallery:
        ids = [str(number) for number in range(len(kept))]
        gallery.add_vectors(ids=ids, vectors=vectors(len(kept)), metadata=kept)
        snapshot = gallery.snapshot()
        for row, data in enumerate(plain):
            for field, value in attributes_of(data):
                quoted = '"' + field.replace("\\", "\\\\").replace('"', '\\"') + '"'
                literal = repr(value)
                if isinstance(value, str):
                    literal = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
                assert row in rows_of(snapshot.where(f"{quoted} = {literal}"), len(kept))
                if not field.startswith("$"):
                    assert row in rows_of(snapshot.where({field: value}), len(kept))
        assert gallery.verify().ok
        gallery.export(folder / "out.safetensors")
        gallery.export(folder / "out")
        json.dumps(plain, allow_nan=False).encode()
    if kept:
        for source in ("out.safetensors", "out"):
            with Gallery.import_from(folder / f"again-{source}", folder / source) as again:
                assert again.snapshot().metadata(range(len(kept))) == plain


def test_an_iterator_may_fill_one_dictionary_again_and_again(tmp_path: Path) -> None:
    """All items had what the last one was told."""

    def prices() -> Iterator[dict[str, int]]:
        held: dict[str, int] = {}
        for held["price"] in range(4):
            yield held

    ids = ["a", "b", "c", "d"]
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        gallery.add_vectors(ids=ids, vectors=vectors(4), metadata=prices())
        snapshot = gallery.snapshot()
        assert [told["price"] for told in snapshot.metadata(np.arange(4))] == [0, 1, 2, 3]
        gallery.set_metadata(ids[::-1], prices())
        told = {item.id: item.metadata["price"] for item in gallery.snapshot().items(np.arange(4))}
    assert told == {"d": 0, "c": 1, "b": 2, "a": 3}
