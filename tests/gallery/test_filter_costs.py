"""What a filter costs: look-ups, what is fused, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cir_infer.gallery import Gallery
from cir_infer.gallery import snapshot as snapshot_module
from cir_infer.gallery.filters import filters
from cir_infer.gallery.filters.filters import parse
from tests.gallery.support import rows_of, vectors


def test_many_values_are_one_look_up(tmp_path: Path) -> None:
    count = 3000
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(
        ids=[str(n) for n in range(count)],
        vectors=vectors(count),
        metadata=[{"n": n, "name": f"n{n}", "tags": [n, f"n{n}"]} for n in range(count)],
    )
    snapshot = gallery.snapshot()
    some = [*range(0, count, 7), *range(10**6, 10**6 + 50_000)]
    expected = list(range(0, count, 7))
    texts = [f"n{n}" for n in some]
    statements: list[str] = []
    with gallery._store.catalogue.reading() as connection:
        connection.set_trace_callback(statements.append)
    for where in (
        {"n": some},
        {"n": np.array(some)},
        {"n": set(some)},
        {"name": texts},
        {"tags": {"in": [*some, *texts]}},
        {"$not": {"n": {"not in": some}}},
        {"$not": {"$and": [{"n": {"!=": n}} for n in some[:5000]]}},
        {"$or": [{"n": n} for n in some[:5000]]},
        f"n in ({', '.join(map(str, some))})",
        f"name in ({', '.join(texts)})",
    ):
        statements.clear()
        assert rows_of(snapshot.where(where), count) == expected
        assert len(statements) <= 15
    assert rows_of(snapshot.where({"n": {"not in": some}}), count) == [n for n in range(count) if n % 7]


def test_comparisons_of_one_field_are_fused(tmp_path: Path) -> None:
    either = parse({"$or": [{"n": {"<": n}} for n in range(5000)]})
    assert either == parse({"n": {"<": 4999}})
    assert parse({"$and": [{"n": {">": n}} for n in range(5000)]}) == parse({"n": {">": 4999}})
    touching = {"$or": [{"n": {">": 5}}, {"n": {"<=": 5}}, {"n": "x"}]}
    assert parse(touching) == parse({"$or": [{"n": {"<": 1e9}}, {"n": "x"}, {"n": {">": 1e8}}]})
    # A list may have one value in each range, so these stay two.
    assert parse({"n": {">": 5, "<": 3}}) != parse({"n": []})
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(ids=["a", "b"], vectors=vectors(2), metadata=[{"n": [1, 9]}, {"n": 4}])
    assert rows_of(gallery.snapshot().where({"n": {">": 5, "<": 3}}), 2) == [0]


def test_fields_that_nothing_has_cost_nothing(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(ids=["a", "b"], vectors=vectors(2), metadata=[{"n": 1}, None])
    snapshot = gallery.snapshot()
    wheres = [{f"absent{n}": n} for n in range(5000)]
    assert snapshot.matching({"$or": wheres}) == 0
    assert snapshot.matching({"$or": [*wheres, {"n": 1}]}) == 1
    assert snapshot.matching({"$and": [{"$not": where} for where in wheres[:1000]]}) == 2
    assert len(gallery._store._cache._answers) == 1


def test_what_is_kept_stays_within_its_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "CACHE_BYTES", 20_000)
    monkeypatch.setattr(snapshot_module, "_MASK_BYTES", 10_000)
    gallery = Gallery.create(tmp_path / "g", dimension=8)
    gallery.add_vectors(
        ids=[str(n) for n in range(99)], vectors=vectors(99), metadata=[{"n": n} for n in range(99)]
    )
    snapshot = gallery.snapshot()
    answers, masks = gallery._store._cache._answers, snapshot._masks
    for bound in range(99):
        assert snapshot.matching({"n": {"<": bound}}) == bound
        assert snapshot.matching({"n": f"no such {bound}"}) == 0
        assert snapshot.matching({"n": f"{bound}" + "x" * 100_000}) == 0
        assert 0 < answers.held <= 20_000 and 0 < masks.held <= 10_000
    assert len(answers) < 40 and len(masks) < 20
