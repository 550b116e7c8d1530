"""Galleries of several vectors an item: everything that a gallery does, by item."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer import Engine, Gallery, Searcher, VectorSearcher
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest_reader import MAX_ITEM_VALUES, MAX_TOKENS, read_manifest
from cir_infer.errors import BundleError, GalleryError, UsageError
from cir_infer.scoring.contract import MOST_ITEM_VALUES, MOST_TOKENS
from tests.bundles import TOKENS, manifest_of, write_tiny_bundle
from tests.gallery.support import names

M, D = 3, 8


def tokens(count: int, seed: int = 0, m: int = M) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, m, D)).astype(np.float32)


def made(path: Path, count: int = 10, **options: Any) -> Gallery:
    gallery = Gallery.create(path, dimension=D, tokens_per_item=M, **options)
    if count:
        gallery.add_vectors(
            ids=names(count), vectors=tokens(count), metadata=[{"number": number} for number in range(count)]
        )
    return gallery


def version(path: Path) -> int:
    connection = sqlite3.connect(path / "catalogue.sqlite")
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_answers_are_those_of_brute_force_whatever_changes(tmp_path: Path, dtype: str) -> None:
    """Removals, replacements, compaction, filters, exclusions, ties; one to three vectors a query."""

    @settings(max_examples=8)
    @given(
        seed=st.integers(0, 2**32 - 1),
        k=st.integers(1, 30),
        least=st.integers(0, 20),
        of_query=st.integers(1, 3),
        compacted=st.booleans(),
    )
    def run(seed: int, k: int, least: int, of_query: int, compacted: bool) -> None:
        rng = np.random.default_rng(seed)
        with Gallery.create(
            tmp_path / f"{seed}-{k}-{least}-{of_query}-{compacted}.gallery",
            dimension=D,
            tokens_per_item=M,
            dtype=dtype,
        ) as gallery:
            kinds = tokens(12, seed)
            for part in range(4):
                gallery.add_vectors(
                    ids=[f"{part}-{n}" for n in range(8)],
                    vectors=kinds[rng.integers(0, 12, 8)],
                    metadata=[{"number": n + 8 * part} for n in range(8)],
                )
            gone = [f"{p}-{n}" for p in range(4) for n in rng.permutation(8)[:2]]
            gallery.remove(gone)
            gallery.add_vectors(ids=["1-1"], vectors=kinds[:1], metadata=[{"number": 99}], existing="replace")
            if compacted:
                gallery.compact()
            assert gallery.verify().problems == []
            queries = rng.standard_normal((2, of_query, D))
            with VectorSearcher(gallery) as searcher:
                answers = searcher.search_vectors(queries, k, f"number >= {least}", ["2-2"])
            snapshot = gallery.snapshot()
            live = snapshot.live_rows()
            items = snapshot.items(live)
            rows = snapshot.rows.take(live).astype(np.float64)
            rows /= np.linalg.norm(rows, axis=2, keepdims=True)
            queries /= np.linalg.norm(queries, axis=2, keepdims=True)
            alike = np.einsum("qtd,nmd->qntm", queries, rows)
            scores = alike.max(axis=3).sum(axis=2)
            allowed = [
                n for n, item in enumerate(items) if item.metadata["number"] >= least and item.id != "2-2"
            ]
            places = {item.id: n for n, item in enumerate(items)}
            for query, hits in enumerate(answers):
                best = sorted(-scores[query, n] for n in allowed)[:k]
                np.testing.assert_allclose(hits.scores, [-score for score in best], atol=1e-5)
                for hit in hits:
                    place = places[hit.id]
                    assert place in allowed and abs(scores[query, place] - hit.score) < 1e-5
                    assert hit.tokens.keys() == hit.terms.keys() and len(hit.terms) == of_query
                    for number, token in enumerate(hit.tokens.values()):
                        mine = alike[query, place, number]
                        assert mine[token] >= mine.max() - 1e-5

    run()


def test_only_galleries_of_several_vectors_have_the_new_format(tmp_path: Path) -> None:
    made(tmp_path / "several").close()
    Gallery.create(tmp_path / "one", dimension=D, tokens_per_item=1).close()
    Gallery.create(tmp_path / "plain", dimension=D).close()
    assert [version(tmp_path / name) for name in ("several", "one", "plain")] == [3, 2, 2]
    with Gallery.open(tmp_path / "several") as gallery:
        assert (gallery.format_version, gallery.tokens_per_item, gallery.dimension) == (3, M, D)
        assert "10 rows x 3 x 8" in repr(gallery) and "3 x 8" in repr(gallery.snapshot())
        assert gallery.upgrade() is False
        assert gallery.snapshot().vector(4).shape == (M, D)
    with Gallery.open(tmp_path / "one") as gallery:
        gallery.add_vectors(ids=["a"], vectors=np.ones((1, D)))
        assert gallery.tokens_per_item == 1 and not gallery.snapshot().rows.has_tokens
        with VectorSearcher(gallery) as searcher:
            assert searcher.search_vectors(np.ones((1, D)))[0][0].tokens == {}


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.ones((2, D)), r"shape \(2, 8\).*expected \(2, 3, 8\)"),
        (np.ones((2, M + 1, D)), r"expected \(2, 3, 8\)"),
        (np.ones((2, M, D, 1)), r"expected \(2, 3, 8\)"),
        (np.arange(2 * M).reshape(2, M, 1)[::-1] * np.ones(D), "id 'b' is 3 vectors, and number 0 is zero"),
        (np.full((2, M, D), np.nan), "id 'a'.*number 0 holds NaN"),
        (np.full((2, M, D), 1e9), "beyond float16"),
    ],
)  # fmt: skip
def test_other_numbers_of_vectors_are_refused(tmp_path: Path, vectors: np.ndarray, said: str) -> None:
    with made(tmp_path / "g", 0) as gallery:
        with pytest.raises(GalleryError, match=said):
            gallery.add_vectors(ids=["a", "b"], vectors=vectors)
        assert len(gallery) == 0
    plain = Gallery.create(tmp_path / "i", dimension=D)
    with plain, pytest.raises(GalleryError, match=r"expected \(2, 8\)"):
        plain.add_vectors(ids=["a", "b"], vectors=np.ones((2, M, D)))


@pytest.mark.parametrize(
    ("m", "d"), [(0, 4), (-1, 4), (MOST_TOKENS + 1, 1), (MOST_TOKENS, 1024), (2.5, 4), (True, 4), ("3", 4)]
)
def test_sizes_that_no_row_can_have(tmp_path: Path, m: Any, d: int) -> None:
    with pytest.raises(UsageError, match=r"tokens_per_item|an item has"):
        Gallery.create(tmp_path / "g", dimension=d, tokens_per_item=m)
    assert not (tmp_path / "g").exists()
    assert (MAX_TOKENS, MAX_ITEM_VALUES) == (MOST_TOKENS, MOST_ITEM_VALUES)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_exports_imports_and_backups_keep_them(tmp_path: Path, dtype: str) -> None:
    with made(tmp_path / "g", dtype=dtype, fingerprint="model") as gallery:
        gallery.remove(["i4"])
        gallery.export(tmp_path / "e.safetensors")
        gallery.export(tmp_path / "folder")
        gallery.backup(tmp_path / "b")
        gallery.add_vectors(ids=["late"], vectors=tokens(1, 5))
        gallery.backup(tmp_path / "b")
        expected = gallery.snapshot()
        vectors = expected.rows.take(expected.live_rows())
        with Gallery.open(tmp_path / "b") as backup:
            there = backup.snapshot()
            assert backup.ids == gallery.ids and version(tmp_path / "b") == 3
            np.testing.assert_array_equal(there.rows.take(there.live_rows()), vectors)
        for source in ("e.safetensors", "folder"):
            with Gallery.import_from(tmp_path / f"{source}.g", tmp_path / source) as again:
                assert (again.tokens_per_item, again.dtype, again.fingerprint) == (M, dtype, "model")
                assert again.ids == [item for item in gallery.ids if item != "late"]
                rows = again.snapshot().rows.take(again.snapshot().live_rows())
                np.testing.assert_allclose(rows, vectors[:-1], rtol=1e-6)
                assert again.verify().ok
    with Gallery.from_arrays(tmp_path / "f", ids=names(4), vectors=tokens(4)) as gallery:
        assert gallery.tokens_per_item == M
        assert gallery.duplicates(0.99) == []
    with Gallery.from_arrays(tmp_path / "one", ids=names(4), vectors=tokens(4, m=1)) as gallery:
        assert gallery.tokens_per_item == 1 and version(tmp_path / "one") == 2


def test_damage_is_found(tmp_path: Path) -> None:
    made(tmp_path / "g").close()
    connection = sqlite3.connect(tmp_path / "g" / "catalogue.sqlite")
    connection.execute("UPDATE encodings SET dtype = '4*float16'")
    connection.commit()
    connection.close()
    with pytest.raises(GalleryError, match="damaged"):
        Gallery.open(tmp_path / "g")


class Model:
    def __init__(self, fingerprint: str, tokens_per_item: int) -> None:
        self.fingerprint, self.tokens_per_item, self.dimension = fingerprint, tokens_per_item, D


def test_a_gallery_can_change_over_to_several_vectors_and_back(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", dimension=D, fingerprint="one") as gallery:
        gallery.add_vectors(ids=names(5), vectors=tokens(5)[:, 0])
        held = gallery.snapshot()
        gallery.backup(tmp_path / "b")
        several: Any = Model("several", M)
        work = gallery.reencoding(several)
        work.add(work.missing().tolist()[:3], tokens(3))
        with pytest.raises(GalleryError, match=r"expected \(2, 3, 8\)"):
            work.add(work.missing().tolist(), tokens(2)[:, 0])
        work.add(work.missing().tolist(), tokens(5)[3:])
        assert gallery.snapshot().tokens_per_item == 1
    with Gallery.open(tmp_path / "g") as opened:  # expects no model
        work = opened.reencoding(several)
        assert work.finish()
        assert opened.tokens_per_item == M and opened.verify().problems == []
        np.testing.assert_allclose(opened.snapshot().rows.take(np.arange(5)), tokens(5), atol=2e-3)
        assert held.tokens_per_item == 1
        opened.backup(tmp_path / "b")
        with Gallery.open(tmp_path / "b") as backup:
            assert backup.tokens_per_item == M
        one: Any = Model("one again", 1)
        work = opened.reencoding(one)
        work.add(work.missing().tolist(), tokens(5)[:, 1])
        assert work.finish() and opened.tokens_per_item == 1 and opened.verify().ok


def test_a_bundle_of_several_vectors_a_row(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "tokens.cir", "tokens")
    manifest = Bundle(path).manifest
    assert (manifest.version, manifest.tokens_per_item, manifest.reduce) == (2, TOKENS, "max")
    assert read_manifest(manifest.to_json()) == manifest
    pictures = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        pictures.append(tmp_path / f"{number}.png")
    with Engine(path) as engine:
        assert engine.tokens_per_item == TOKENS and engine.describe()["tokens_per_item"] == TOKENS
        assert engine.encode_images(pictures).shape == (6, TOKENS, engine.dimension)
        with Gallery.create(tmp_path / "g", engine) as gallery:
            gallery.add(pictures, ids=names(6))
            with Searcher(engine, gallery) as searcher:
                searcher.warm_up()
                hits = searcher.query(pictures[2], "is red", k=6)
                terms = engine.compose(
                    engine.encode_references([pictures[2]]), engine.encode_texts(["is red"])
                )
                rows = gallery.snapshot().rows.take(np.arange(6))
                scores = (rows @ terms.numerators[0, 0]).max(axis=1)
                assert hits.ids == [f"i{n}" for n in np.argsort(-scores)]
                assert hits.reference_id == "i2" and hits[0].as_dict()["tokens"] == dict(hits[0].tokens)
                refined = searcher.query(hits[0], "is longer", k=6)
                assert len(refined) == 5 and hits[0].id not in refined.ids
                left = searcher.query(pictures[2], "is red", k=6, exclude_reference=True)
                assert "i2" not in left.ids
        with pytest.raises(UsageError, match="the engine makes 3"):
            Gallery.create(tmp_path / "h", engine, tokens_per_item=4)
        with pytest.raises(GalleryError, match=r"rows have 8 dimensions, the bundle's 3 x 8"):
            Gallery.create(tmp_path / "plain", dimension=D).check_engine(engine)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens_per_item": 1},
        {"tokens_per_item": 70000},
        {"reduce": "mean"},
        {"reduce": None},
        {"version": 1},
    ],
)
def test_a_manifest_says_both_or_neither(changes: dict[str, Any]) -> None:
    import json

    said = json.loads(manifest_of("tokens").to_json())
    members = {
        name: {"bytes": 1, "sha256": "0" * 64} for name in [*said["graphs"].values(), "tokenizer.json"]
    }
    said["members"] = members
    assert read_manifest(json.dumps(said)).tokens_per_item == TOKENS
    with pytest.raises(BundleError, match="manifest"):
        read_manifest(json.dumps({**said, **changes}))
