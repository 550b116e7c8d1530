"""Other metadata for items that stay what they are, beside whoever else writes."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import GalleryError, UsageError
from cir_infer.gallery import Gallery
from cir_infer.gallery.catalogue.catalogue import Catalogue
from cir_infer.gallery.catalogue.tables import Encoding
from cir_infer.gallery.changes import upkeep
from cir_infer.gallery.changes.reencoding import Reencoding
from cir_infer.gallery.disk.locks import GalleryBusyError
from tests.gallery.support import DIM, as_version_1, filled, names, other_process, rows_of, vectors


def held(gallery: Gallery, item: str) -> tuple[dict[str, Any], str | None, str | None, bytes, bytes]:
    """All that is known of an item: metadata, source, stamp, and its row as it is stored."""
    snapshot = gallery.snapshot()
    row = snapshot.row(item)
    assert row is not None
    found = gallery.held([item])[item]
    block = np.searchsorted(np.cumsum([len(one) for one in snapshot.rows.blocks]), row, side="right")
    at = row - sum(len(one) for one in snapshot.rows.blocks[:block])
    scales = snapshot.rows.scales
    stored = snapshot.rows.blocks[block][at].tobytes()
    return (
        snapshot.metadata([row])[0],
        found.source,
        found.stamp,
        stored,
        b"" if scales is None else scales[block][at].tobytes(),
    )


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_metadata_changes_alone(tmp_path: Path, dtype: str, tokens: int) -> None:
    with Gallery.create(tmp_path / "g", dimension=DIM, dtype=dtype, tokens_per_item=tokens) as gallery:
        for start in range(0, 12, 4):
            rows = vectors(4 * tokens, start).reshape((4, tokens, DIM) if tokens > 1 else (4, DIM))
            gallery.add_vectors(
                ids=names(12)[start : start + 4],
                vectors=rows,
                metadata=[{"number": n, "kind": "old"} for n in range(start, start + 4)],
                sources=[f"/x/{n}.png" for n in range(start, start + 4)],
                stamps=[f"{n}-stamp" for n in range(start, start + 4)],
            )
        before = {item: held(gallery, item) for item in names(12)}
        old = gallery.snapshot()
        told = {"i9": {"number": -9, "tags": ["a", "b"]}, "i0": None, "i5": {"number": 5, "kind": "old"}}
        assert gallery.set_metadata(list(told), list(told.values())) == 2  # i5 is as it was
        for item in names(12):
            expected = (told.get(item, before[item][0]) or {}, *before[item][1:])
            assert held(gallery, item) == expected
        # Indexes of filters go with it, and whoever looked before sees what there was.
        snapshot = gallery.snapshot()
        assert snapshot.generation == old.generation + 1
        assert [snapshot.matching(f) for f in ("number < 0", "kind = old", "tags = b")] == [1, 10, 1]
        assert [old.matching(f) for f in ("number < 0", "kind = old", "tags = b")] == [0, 12, 0]
        assert old.metadata([0, 9]) == [{"number": 0, "kind": "old"}, {"number": 9, "kind": "old"}]
        assert gallery.ids == [*names(12)[1:9], "i10", "i11", "i9", "i0"]
        gallery.compact()
        assert gallery.set_metadata(["i9"], [told["i9"]]) == 0
        assert held(gallery, "i9") == (told["i9"], *before["i9"][1:])
        assert gallery.verify().ok


def test_fields_are_merged_where_they_are_written(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 3) as gallery:
        changes: list[dict[str, Any] | None] = [{"price": np.float32(2), "number": None}, {"parity": "odd"}]
        assert gallery.set_metadata(["i2", "i1"], changes, merge=True) == 1
        assert gallery.set_metadata(["i0"], [None], merge=True) == 0
        snapshot = gallery.snapshot()
        assert snapshot.metadata([snapshot.row("i2") or 0]) == [{"parity": "even", "price": 2.0}]
        assert snapshot.matching("number is null") == 1 and snapshot.matching("price = 2") == 1
        gallery.set_metadata(["i0"], [{"size": {"height": 1}}], merge=True)
        generation = gallery.snapshot().generation
        with pytest.raises(GalleryError, match=r"id 'i0' cannot be stored: field 'size\.height' is there"):
            gallery.set_metadata(["i1", "i0"], [{"a": 1}, {"size.height": 2}], merge=True)
        assert gallery.snapshot().generation == generation


@pytest.mark.parametrize(
    ("ids", "metadata", "options", "error", "message"),
    [
        (["i1", "x", "y"], [{}] * 3, {}, GalleryError, r"holds no id 'x' \(2 of 3 ids in this call\); pass"),
        (["i1"], [{"a": object()}], {}, GalleryError, "metadata of id 'i1' cannot be stored: field 'a'"),
        (["i1", "i2"], [{}], {}, GalleryError, "metadata has 1 entries for 2 ids"),
        (["i1", "i1"], [{}, {}], {}, GalleryError, "i1"),
        (["i1"], None, {}, UsageError, "metadata is None; expected a list of dictionaries"),
        (["i1"], {"i1": {}}, {}, UsageError, "metadata is a dict; expected a list"),
        (["i1"], [{}], {"missing": "ignore"}, UsageError, "missing"),
        (["i1"], [{}], {"merge": "yes"}, UsageError, "merge"),
    ],
)
def test_what_is_refused_changes_nothing(
    tmp_path: Path, ids: Any, metadata: Any, options: Any, error: type[Exception], message: str
) -> None:
    with filled(tmp_path / "g", 4) as gallery:
        generation = gallery.snapshot().generation
        with pytest.raises(error, match=message):
            gallery.set_metadata(ids, metadata, **options)
        assert gallery.snapshot().generation == generation
        assert gallery.set_metadata(["x", "i1"], [{}, {"a": 1}], missing="skip") == 1
    with Gallery.open(tmp_path / "g", read_only=True) as gallery, pytest.raises(GalleryError, match="read"):
        gallery.set_metadata(["i1"], [{}])


def test_another_process_sees_it_with_its_next_snapshot(tmp_path: Path) -> None:
    filled(tmp_path / "g", 5).close()
    code = (
        "import sys; from cir_infer.gallery import Gallery\n"
        "gallery = Gallery.open(sys.argv[1], read_only=True); old = gallery.snapshot()\n"
        "print(old.matching('price = 3'), flush=True); sys.stdin.readline()\n"
        "print(old.matching('price = 3'), gallery.snapshot().matching('price = 3'), old.metadata([2]))\n"
    )
    with other_process(code, tmp_path / "g") as (_, told, said):
        assert said.readline() == "0\n"
        with Gallery.open(tmp_path / "g") as gallery:
            gallery.set_metadata(["i2"], [{"price": 3}])
            gallery.compact()
            told.write("\n")
            told.close()
            assert said.readline() == "0 1 [{'number': 2, 'parity': 'even'}]\n"


@pytest.mark.parametrize("segments", [0, upkeep.MANY])
def test_the_first_format_and_an_unfinished_reencoding(tmp_path: Path, segments: int) -> None:
    """What is encoded anew already stays so, however often its metadata changes meanwhile."""
    filled(tmp_path / "g", 6).close()
    as_version_1(tmp_path / "g")
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.set_metadata(["i1"], [{"number": -1}])
        assert gallery.format_version == 2 and gallery.snapshot().matching("number < 0") == 1
        work = Reencoding(gallery._store, Encoding(0, "e" * 64, 16, "float16"))
        keys = work.missing().tolist()
        work.add(keys[1:], vectors(5, 5, 16))
        if not segments:
            gallery.set_metadata(["i4"], [{"number": -4}])
        else:
            for number in range(2 * segments):
                gallery.set_metadata(["i4", "i5"], [{"number": -4}, {"number": number}])
        assert gallery.verify().ok
        (late,) = work.missing().tolist()
        assert gallery.sources_of([late])[0][1] == "i0" and not work.finish()
        work.add([late], vectors(1, 6, 16))
        assert work.finish()
        gallery.check_fingerprint("e" * 64)
        snapshot = gallery.snapshot()
        assert snapshot.matching("number < 0") == 2 and sorted(gallery.ids) == names(6)
        # Keys are those that there were when the images were encoded: i1 had changed, and came last.
        order = ["i2", "i3", "i4", "i5", "i1"]
        expected = {**dict(zip(order, vectors(5, 5, 16), strict=True)), "i0": vectors(1, 6, 16)[0]}
        for item, row in expected.items():
            np.testing.assert_allclose(snapshot.vector(snapshot.row(item) or 0), row, atol=2e-3)
        gallery.compact()
        assert gallery.verify().ok and gallery.snapshot().matching("number < 0") == 2


@pytest.mark.parametrize("column", ["source", "stamp", "metadata"])
def test_damage_gets_no_new_checksum(tmp_path: Path, column: str) -> None:
    with Gallery.create(tmp_path / "g", dimension=DIM) as gallery:
        gallery.add_vectors(
            ids=["a"], vectors=vectors(1), metadata=[{"n": 1}], sources=["/x"], stamps=["1-1"]
        )
    link = sqlite3.connect(tmp_path / "g" / "catalogue.sqlite")
    with link:
        link.execute(f"UPDATE items SET {column} = replace({column}, '1', '2') || ' '")
    link.close()
    with Gallery.open(tmp_path / "g") as gallery:
        with pytest.raises(GalleryError, match="items 1: was altered"):
            gallery.set_metadata(["a"], [{"m": 1}], merge=True)
        assert any("items 1" in problem for problem in gallery.verify().problems)


def test_many_small_changes_leave_few_files(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 20) as gallery:
        for number in range(150):
            assert gallery.set_metadata([f"i{number % 20}"], [{"number": number}]) == 1
        snapshot = gallery.snapshot()
        assert snapshot.segment_count < 70 and snapshot.row_count < 100
        assert snapshot.matching("number >= 130") == 20
        compared = snapshot.rows.take([snapshot.row(item) or 0 for item in names(20)])
        np.testing.assert_allclose(compared, vectors(20), atol=2e-3)
        assert len(rows_of(snapshot.live, snapshot.row_count)) == 20


@pytest.mark.parametrize("known", [None, 7])
def test_rows_of_which_none_is_left_go_with_the_commit(tmp_path: Path, known: int | None) -> None:
    """A catalogue whose prices change each night has no more rows, and no more files, after a week."""
    with filled(tmp_path / "g", 50) as gallery:
        gallery.add_vectors(ids=names(50, "j"), vectors=vectors(50, 1))
        if known is not None:
            gallery.remove([f"j{known}"])
        held = gallery.snapshot()
        before = held.items(held.live_rows())
        for night in range(5):
            some = [item for item in names(50, "j") if item in gallery]
            assert gallery.set_metadata(some, [{"price": night}] * len(some)) == len(some)
        assert held.items(held.live_rows()) == before
        assert held.rows.take(held.live_rows()).shape == (len(before), DIM)
        snapshot = gallery.snapshot()
        assert (snapshot.segment_count, snapshot.row_count) == (2, 50 + len(some))
        del held
        gallery.set_metadata(["i0"], [{"price": -1}])  # i1 to i49 stay where they are
        assert gallery.snapshot().segment_count == 3
        assert gallery.snapshot().row_count == 50 + len(some) + 1
        assert len(list((tmp_path / "g" / "rows").iterdir())) == 3
        assert gallery.snapshot().matching("price = 4") == len(some) and gallery.verify().ok


# ---- two writers

Model = dict[str, tuple[int, tuple[tuple[str, int], ...]]]
"""Of each item, which picture it has, and its metadata."""
Operation = tuple[str, str, int]
"""What is done, to which item, and the number that it brings."""

operations = st.tuples(
    st.sampled_from(["describe", "merge", "replace", "remove"]),
    st.sampled_from(["a", "b"]),
    st.integers(1, 9),
)


def carried_out(gallery: Gallery, operation: Operation) -> None:
    kind, item, number = operation
    match kind:
        case "describe":
            gallery.set_metadata([item], [{"d": number}], missing="skip")
        case "merge":
            gallery.set_metadata([item], [{f"m{number % 2}": number}], merge=True, missing="skip")
        case "replace":
            gallery.add_vectors(
                ids=[item],
                vectors=vectors(1, number),
                metadata=[{"r": number}],
                sources=[str(number)],
                existing="replace",
            )
        case "remove":
            gallery.remove([item], missing="skip")


def modelled(state: Model, operation: Operation) -> Model:
    kind, item, number = operation
    if kind == "replace":
        return state | {item: (number, (("r", number),))}
    if item not in state:
        return state
    if kind == "remove":
        return {name: value for name, value in state.items() if name != item}
    picture, fields = state[item]
    fresh = {"d": number} if kind == "describe" else dict(fields) | {f"m{number % 2}": number}
    return state | {item: (picture, tuple(sorted(fresh.items())))}


def shown(gallery: Gallery) -> Model:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    found: Model = {}
    for row, item in zip(rows.tolist(), snapshot.items(rows), strict=True):
        picture = int(item.source or 0)
        np.testing.assert_allclose(snapshot.vector(row), vectors(1, picture)[0], atol=2e-3)
        found[item.id] = (picture, tuple(sorted(item.metadata.items())))
        for field, value in item.metadata.items():
            assert row in rows_of(snapshot.where({field: value}), snapshot.row_count)
    return found


@contextmanager
def beside(gallery: Gallery, work: Callable[[], object]) -> Iterator[None]:
    """Do something before every look that a gallery takes at its catalogue, and before every commit."""
    reading, commit, busy = Catalogue.reading, Catalogue.commit, False
    catalogue = gallery._store.catalogue

    def first(self: Catalogue) -> None:
        nonlocal busy
        if self is catalogue and not busy:
            busy = True
            try:
                work()
            finally:
                busy = False

    def reading_beside(self: Catalogue) -> Any:
        first(self)
        return reading(self)

    def commit_beside(self: Catalogue, *args: Any, **kwargs: Any) -> None:
        first(self)
        commit(self, *args, **kwargs)

    Catalogue.reading, Catalogue.commit = reading_beside, commit_beside  # type: ignore[method-assign]
    try:
        yield
    finally:
        Catalogue.reading, Catalogue.commit = reading, commit  # type: ignore[method-assign]


def orders(first: list[Operation], second: list[Operation]) -> Iterator[list[Operation]]:
    """Every order of both that keeps the order of each."""
    for places in itertools.combinations(range(len(first) + len(second)), len(first)):
        mine, other = iter(first), iter(second)
        yield [next(mine) if at in places else next(other) for at in range(len(first) + len(second))]


@settings(max_examples=120, deadline=None)
@given(
    first=st.lists(operations, min_size=1, max_size=3),
    second=st.lists(operations, min_size=1, max_size=3),
    steps=st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_any_interleaving_of_two_writers_is_some_order(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[Operation],
    second: list[Operation],
    steps: list[int],
) -> None:
    """One writer's calls come between any two looks of the other's; where it has to wait, they come later."""
    path = tmp_path_factory.mktemp("two") / "g"
    start: Model = {"a": (0, ()), "b": (0, ())}
    with Gallery.create(path, dimension=DIM) as mine, Gallery.open(path, wait=0) as other:
        for item in start:
            mine.add_vectors(ids=[item], vectors=vectors(1), sources=["0"])
        waiting, pauses = list(second), list(steps)
        looks = 0

        def turn() -> None:
            nonlocal looks
            looks += 1
            if not waiting or looks <= pauses[len(second) - len(waiting)]:
                return
            try:
                carried_out(other, waiting[0])
            except GalleryBusyError:
                return
            looks = 0
            waiting.pop(0)

        with beside(mine, turn):
            for operation in first:
                carried_out(mine, operation)
        for operation in waiting:
            carried_out(other, operation)
        found = shown(other)
        assert shown(mine) == found and mine.verify().ok
    possible = []
    for order in orders(first, second):
        state = start
        for operation in order:
            state = modelled(state, operation)
        possible.append(state)
    assert found in possible
