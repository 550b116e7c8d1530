"""Galleries and searches of vectors from elsewhere: no bundle, no engine."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer import Engine, Gallery, Searcher, VectorSearcher
from cir_infer.commands.query import main
from cir_infer.errors import CirError, GalleryError, UsageError
from cir_infer.shards import ShardedGallery, ShardedSearcher
from tests.bundles import write_tiny_bundle
from tests.gallery.support import DIM, filled, names, vectors

MODEL = "Qwen3-VL-Embedding-2B"


def expected(rows: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    scores = rows.astype(np.float64) @ query.astype(np.float64)
    if metric == "cosine":
        scores /= np.linalg.norm(rows.astype(np.float64), axis=1) * np.linalg.norm(query.astype(np.float64))
    return scores


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_answers_are_those_of_brute_force(tmp_path: Path, dtype: str, metric: Any) -> None:
    @settings(max_examples=12)
    @given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 60), wide=st.sampled_from([1, 3, 64, 4096]))
    def run(seed: int, k: int, wide: int) -> None:
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((40, wide)).astype(np.float32) * rng.uniform(0.5, 2, (40, 1))
        place = tmp_path / f"{seed}-{k}-{wide}.gallery"
        if place.exists():
            return
        with Gallery.create(place, dimension=wide, dtype=dtype, fingerprint=MODEL) as gallery:
            gallery.add_vectors(
                ids=names(40), vectors=rows, metadata=[{"number": number} for number in range(40)]
            )
            gallery.remove(["i3", "i17"])
            queries = rng.standard_normal((3, wide))
            with VectorSearcher(gallery, fingerprint=MODEL) as searcher:
                answers = searcher.search_vectors(queries, k, "number < 30", ["i5"], metric)
            snapshot = gallery.snapshot()
            stored = snapshot.rows.take(np.arange(40))
            allowed = [n for n in range(30) if n not in (3, 5, 17)]
            for query, hits in zip(queries, answers, strict=True):
                scores = expected(stored, query, metric)
                best = sorted((-scores[n], n) for n in allowed)[:k]
                assert len(hits) == len(best)
                np.testing.assert_allclose(hits.scores, [-score for score, _ in best], atol=1e-5)
                for hit, (score, _) in zip(hits, best, strict=True):
                    assert abs(scores[int(hit.id[1:])] + score) < 1e-5
                    assert hit.terms == {{"cosine": "cosine", "dot": "dot_product"}[metric]: hit.score}

    run()


def test_a_gallery_is_refused_under_the_name_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "g"
    filled(path, fingerprint=MODEL).close()
    for wrong in (
        lambda: Gallery.open(path, fingerprint="GME-2B"),
        lambda: VectorSearcher(path, fingerprint="GME-2B"),
    ):
        with pytest.raises(GalleryError, match=r"Qwen3-VL-Embedding-2B.*GME-2B.*cannot be compared"):
            wrong()
    with Gallery.open(path, fingerprint=MODEL) as gallery:
        assert pickle.loads(pickle.dumps(gallery)).fingerprint == MODEL
        gallery.add_vectors(ids=["new"], vectors=vectors(1))
    with VectorSearcher(path) as any_model, pytest.raises(UsageError, match="fingerprint is None"):
        any_model.gallery.check_fingerprint(None)  # type: ignore[arg-type]


def test_a_gallery_that_changes_its_model_is_noticed(tmp_path: Path) -> None:
    class Other:
        fingerprint, dimension = "other", DIM

    gallery = filled(tmp_path / "g", fingerprint=MODEL)
    with VectorSearcher(tmp_path / "g", fingerprint=MODEL) as searcher:
        assert len(searcher.search_vectors(vectors(1))[0]) == 10
        other: Any = Other()
        reencoding = gallery.reencoding(other)
        reencoding.add(reencoding.missing().tolist(), vectors(10, 5))
        assert reencoding.finish()
        with pytest.raises(GalleryError, match="other"):
            searcher.search_vectors(vectors(1))
    with Gallery.open(tmp_path / "g") as opened:
        assert opened.fingerprint == "other"


@pytest.mark.parametrize("name", ["", 7, b"x", "a\0b", "x" * 1025, "\ud800"])
def test_a_name_is_a_short_text(tmp_path: Path, name: Any) -> None:
    with pytest.raises(UsageError, match="fingerprint"):
        Gallery.create(tmp_path / "g", dimension=4, fingerprint=name)
    filled(tmp_path / "h").close()
    with pytest.raises(UsageError, match="fingerprint"):
        VectorSearcher(tmp_path / "h", fingerprint=name)


class Odd:
    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("given_vectors", "said"),
    [
        (np.ones(DIM), r"vectors\[None\]"),
        (np.ones((1, 1, 1, DIM)), "shape"),
        (np.ones((2, 0, DIM)), "0 vectors"),
        (np.ones((2, 1025, DIM)), "1025 vectors"),
        (np.float32(1), "shape"),
        (np.ones((2, DIM + 1)), "9 values each, the rows of the gallery 8"),
        (np.ones((2, DIM), complex), "complex128"),
        (np.ones((2, DIM), bool), "bool"),
        ([["a"] * DIM], "<U1"),
        ([[1, 2], [3]], "cannot be read"),
        (None, "object"),
        (Odd(), "cannot be read"),
        (np.ma.masked_array(np.ones((1, DIM)), mask=[[1] + [0] * (DIM - 1)]), "masked"),
        (np.concatenate([np.ones((300, DIM)), np.full((1, DIM), np.nan)]), "vector 300 holds NaN"),
        (np.concatenate([np.ones((2, DIM)), np.zeros((1, DIM))]), "vector 2 is zero"),
        (np.full((1, DIM), np.inf), "vector 0 holds NaN or infinity"),
    ],
)
def test_what_is_no_vector_is_a_usage_error(tmp_path: Path, given_vectors: Any, said: str) -> None:
    with VectorSearcher(filled(tmp_path / "g")) as searcher:
        with pytest.raises(UsageError, match=said) as raised:
            searcher.search_vectors(given_vectors)
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize("size", [1e-300, 5e-324, 1e300])
def test_a_cosine_does_not_depend_on_the_length_of_the_query(tmp_path: Path, size: float) -> None:
    query = np.ones((1, DIM))
    with VectorSearcher(filled(tmp_path / "g")) as searcher:
        assert searcher.search_vectors(query * size)[0] == searcher.search_vectors(query)[0]
        both = np.concatenate([query, query * size])
        if size < 1:
            plain, small = searcher.search_vectors(both, metric="dot")
            assert small.ids == plain.ids
            np.testing.assert_allclose(small.scores, np.array(plain.scores) * size, rtol=1e-6, atol=5e-324)
        else:
            with pytest.raises(UsageError, match="vector 1 holds a value beyond float32"):
                searcher.search_vectors(both, metric="dot")


@pytest.mark.parametrize("scorer", ["cpu", "cpu-int8", "reference"])
def test_a_dot_product_below_float32_has_its_rank(tmp_path: Path, scorer: str) -> None:
    """All were 0, so items came in the order of the gallery and nothing said so."""
    rows = np.zeros((4, DIM), np.float32)
    rows[:, 0] = [1e-15, 3e-15, -3e-15, 2e-15]
    query = np.zeros((1, DIM))
    query[:, 0] = 1e-32
    with filled(tmp_path / "g", 0, dtype="float32") as gallery:
        gallery.add_vectors(ids=["a", "b", "c", "d"], vectors=rows)
        with VectorSearcher(gallery, scorer) as searcher:
            (hits,) = searcher.search_vectors(query, metric="dot")
            several = np.stack([query * 1e20, query], axis=1)
            searcher.search_vectors(several, metric="dot")
            with pytest.raises(UsageError, match="vector 0 has values too small for float32 beside others"):
                searcher.search_vectors(np.stack([query * 1e40, query], axis=1), metric="dot")
    assert hits.ids == ["b", "d", "a", "c"]
    np.testing.assert_allclose(hits.scores, [3e-47, 2e-47, 1e-47, -3e-47], rtol=1e-6)


@pytest.mark.skipif(np.finfo(np.longdouble).maxexp < 16000, reason="a long double is a double here")
@pytest.mark.parametrize("power", [-16400, 16000])
def test_a_cosine_of_long_doubles(tmp_path: Path, power: int) -> None:
    with VectorSearcher(filled(tmp_path / "g")) as searcher, warnings.catch_warnings():
        warnings.simplefilter("error")
        query = np.ones((1, DIM), np.longdouble)
        long = np.ldexp(query, power)
        assert np.isfinite(long).all() and searcher.search_vectors(long) == searcher.search_vectors(query)
        if power < 0:
            ranked = [searcher.search_vectors(asked, metric="dot")[0].ids for asked in (query, long)]
            assert ranked[0] == ranked[1]


@pytest.mark.parametrize("scorer", ["cpu", "cpu-int8", "reference"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_dot_product_beyond_float32_comes_first(tmp_path: Path, scorer: str, shards: int) -> None:
    """Such a score is never ranked, so the best of all items were missing and nothing said so."""
    rows = np.zeros((4, DIM), np.float32)
    rows[:, 0] = [1e19, 3e19, -3e19, 2e19]
    query = np.zeros((2, DIM), np.float32)
    query[:, 0] = 1e20, 0.5
    with filled(tmp_path / "g", 0, dtype="float32") as gallery:
        gallery.add_vectors(ids=["a", "b", "c", "d"], vectors=rows)
        if shards == 1:
            searcher: Any = VectorSearcher(gallery, scorer)
        else:
            ShardedGallery.split(gallery, tmp_path / "s", into=shards).close()
            searcher = ShardedSearcher(None, tmp_path / "s", scorer=scorer)
        with searcher:
            huge, plain = searcher.search_vectors(query, metric="dot")
    assert huge.ids == plain.ids == ["b", "d", "a", "c"]
    np.testing.assert_allclose(huge.scores, [3e39, 2e39, 1e39, -3e39], rtol=1e-6)
    assert [hit.terms["dot_product"] for hit in huge] == huge.scores
    assert plain.scores == (np.float32([3e19, 2e19, 1e19, -3e19]) / 2).tolist()


def test_other_arguments_are_looked_at_before(tmp_path: Path) -> None:
    with VectorSearcher(filled(tmp_path / "g")) as searcher:
        assert searcher.search_vectors(np.ones((0, DIM))) == []
        assert len(searcher.search_vectors(np.ones((1, DIM), np.int8), k=10**9)[0]) == 10
        assert len(searcher.search_vectors(np.ones((1, DIM)), where="number > 99")[0]) == 0
        wrong: list[dict[str, Any]] = [
            {"k": 0}, {"metric": "euclid"}, {"exclude": "i1"}, {"where": "number <"}, {"metric": None},
        ]  # fmt: skip
        for given_arguments in wrong:
            with pytest.raises(UsageError):
                searcher.search_vectors(np.ones((1, DIM)), **given_arguments)
        again = pickle.loads(pickle.dumps(searcher))
        assert again.search_vectors(vectors(1)) == searcher.search_vectors(vectors(1))
        assert "closed" not in repr(again) and again.describe()["rows"] == 10
        again.close()
    with pytest.raises(UsageError, match="closed"):
        searcher.search_vectors(np.ones((1, DIM)))
    with VectorSearcher(filled(tmp_path / "empty", 0)) as nothing, pytest.raises(GalleryError, match="empty"):
        nothing.search_vectors(np.ones((1, DIM)))
    for wrong_gallery in (None, 7):
        with pytest.raises(UsageError, match="gallery"):
            VectorSearcher(wrong_gallery)  # type: ignore[arg-type]
    with pytest.raises(CirError, match="threads"):
        VectorSearcher(tmp_path / "g", threads=0)


def test_a_searcher_of_a_bundle_takes_vectors_of_its_encoder(tmp_path: Path) -> None:
    with Engine(write_tiny_bundle(tmp_path / "tiny.cir")) as engine:
        rows = np.random.default_rng(0).standard_normal((9, engine.dimension)).astype(np.float32)
        gallery = Gallery.from_arrays(tmp_path / "g", ids=names(9), vectors=rows, engine=engine)
        with Searcher(engine, gallery) as searcher:
            assert [hits.ids[0] for hits in searcher.search_vectors(rows[:3])] == names(3)
        with pytest.raises(UsageError, match="leave it out"):
            Gallery.create(tmp_path / "h", engine, fingerprint=MODEL)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "g", fingerprint=MODEL).close()
    place, queries, one = tmp_path / "g", tmp_path / "q.npy", tmp_path / "one.npy"
    np.save(queries, vectors(10)[[4, 8]])
    np.save(one, vectors(10)[6])
    base = ["--gallery", str(place), "--vector"]
    assert main([*base, str(queries), "-k", "2", "--where", "number < 9"]) == 0
    said = capsys.readouterr().out
    assert "vector 0" in said and "vector 1" in said and "i4" in said and "i8" in said
    assert main([*base, str(one), "-k", "1", "--json", "--metric", "dot", "--fingerprint", MODEL]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metric"] == "dot" and [len(answer["hits"]) for answer in told["answers"]] == [1]
    assert main([*base, str(one), "--fingerprint", "GME"]) == 1
    assert "GME" in capsys.readouterr().err
    (tmp_path / "evil.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': '|O'}  ")
    assert main([*base, str(tmp_path / "evil.npy")]) == 1
    os.mkfifo(tmp_path / "pipe.npy")  # nobody writes: to read it would be to wait
    np.savez(tmp_path / "several.npz", vectors(1))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name, said in (
        ("pipe.npy", "pipe.npy is not a file; expected a .npy array"),
        ("several.npz", "several arrays"),
        ("missing.npy", "missing.npy does not exist"),
        ("x" * 5000, "does not exist"),
        # Whatever it does not know NumPy takes for a pickle, and tells how to open it all the same.
        ("picture.png", "it begins with b'\\x89PNG"),
        ("objects.npy", "Python objects"),
    ):
        assert main([*base, str(tmp_path / name)]) == 1
        told = capsys.readouterr().err
        assert said in told and "pickle" not in told and len(told) < 400
    for shape in ((0, 4), (4, 0), (0,)):
        np.save(tmp_path / "none.npy", np.zeros(shape, np.float32))
        assert main([*base, str(tmp_path / "none.npy")]) == 1
        assert "holds no vector" in capsys.readouterr().err
    for wrong in (
        ["--vector", str(one)],
        [*base, str(one), "a.cir"],
        [*base, str(one), "--device", "tensorrt"],
        ["--gallery", str(place)],
        ["a.cir", "b.png", "text", "--metric", "dot"],
    ):
        with pytest.raises(SystemExit) as left:
            main(wrong)
        assert left.value.code == 2
