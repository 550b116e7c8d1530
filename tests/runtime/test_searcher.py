"""The whole way of a query, held against the formulas of the paper in float64."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cir_infer import Engine, Gallery, Hit, Searcher
from cir_infer.errors import GalleryError, ImageError, TextError, UsageError
from cir_infer.gallery import Snapshot
from tests.bundles import DIM, HIDDEN, write_tiny_bundle


def l2(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def literal_artemis(
    engine: Engine, reference: Path, text: str, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """IS and EM of every row by the paper's eq. 1 and 2, with the weights of tests.bundles."""
    random = np.random.default_rng(2)
    wa, wb, wt = (random.normal(size=(HIDDEN, DIM)).astype(np.float32) for _ in range(3))
    r = engine.encode_images([reference])[0].astype(np.float64)
    m = engine.encode_texts([text])[0].astype(np.float64)
    a, b = softmax(m @ wa), softmax(m @ wb)
    return l2(a * rows) @ l2(a * r), l2(b * rows) @ l2(m @ wt)


def test_answers_are_those_of_the_paper(searcher: Searcher, pictures: list[Path]) -> None:
    rows = searcher.engine.encode_images(pictures).astype(np.float64)
    for place, text in enumerate(["is red", "is longer and more blue", "a green square"]):
        implicit, explicit = literal_artemis(searcher.engine, pictures[place], text, rows)
        order = np.argsort(-(implicit + explicit), kind="stable")
        hits = searcher.query(pictures[place], text, k=len(pictures))
        assert hits.ids == [f"sku-{i}" for i in order]
        assert [hit.rank for hit in hits] == list(range(1, len(pictures) + 1))
        np.testing.assert_allclose([hit.implicit_similarity for hit in hits], implicit[order], atol=1e-5)
        np.testing.assert_allclose([hit.explicit_matching for hit in hits], explicit[order], atol=1e-5)
        np.testing.assert_allclose(hits.scores, (implicit + explicit)[order], atol=1e-5)


def test_every_kind_of_image_gives_the_same_answer(searcher: Searcher, pictures: list[Path]) -> None:
    with Image.open(pictures[3]) as opened:
        pil = opened.convert("RGB")
    kinds = [pictures[3], str(pictures[3]), pictures[3].read_bytes(), pil, np.asarray(pil)]
    answers = [searcher.query(kind, "is red") for kind in kinds]
    assert all(answer == answers[0] for answer in answers)


def test_a_hit_is_refined_without_its_image(
    engine: Engine, gallery_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = Searcher(engine, gallery_path)
    hit = searcher.query(pictures[0], "is red")[2]
    with_image = searcher.query(hit.source or "", "is longer", exclude=[hit.id])

    def no_images(*args: object) -> None:
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(engine, "encode_references", no_images)
    refined = searcher.query(hit, "is longer")
    assert hit.id not in refined.ids
    assert len(refined) == 10
    assert refined.ids == with_image.ids
    assert searcher.query(searcher.item(hit.id), "is longer").ids == refined.ids


def test_batches_answer_as_single_queries_do(searcher: Searcher, pictures: list[Path]) -> None:
    first = searcher.query(pictures[0], "is red")
    references = [pictures[1], first[0], pictures[2], first[5], pictures[3]]
    texts = ["is red", "is longer", ["is blue", "is a square"], "is green", "is shorter"]
    for size in (1, 2, 32):
        answers = list(searcher.query_batch(references, texts, k=7, batch_size=size))
        for reference, text, answer in zip(references, texts, answers, strict=True):
            alone = searcher.query(reference, text, k=7)
            assert answer.ids == alone.ids
            np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-6)
    assert list(searcher.query_batch([], [])) == []


def test_batch_of_unequal_lengths_is_refused(searcher: Searcher, pictures: list[Path]) -> None:
    with pytest.raises(UsageError, match="as many images as texts"):
        list(searcher.query_batch(pictures[:2], ["is red"]))


def test_filters_and_exclusions(searcher: Searcher, pictures: list[Path]) -> None:
    every = searcher.query(pictures[0], "is red", k=40)
    red = searcher.query(pictures[0], "is red", k=40, where={"colour": "red"})
    assert red.ids == [hit.id for hit in every if hit.metadata["colour"] == "red"]
    gone = {"sku-0", every[1].id, "no such id"}
    rest = searcher.query(pictures[0], "is red", k=40, exclude=gone)
    assert rest.ids == [id for id in every.ids if id not in gone]
    both = searcher.query(pictures[0], "is red", k=5, where="colour = red", exclude=[red[0].id])
    assert both.ids == red.ids[1:6]
    none = searcher.query(pictures[0], "is red", where={"colour": "mauve"})
    assert len(none) == 0
    assert repr(none) == "no hits"


def test_k_beyond_the_gallery_gives_all_of_it(searcher: Searcher, pictures: list[Path]) -> None:
    hits = searcher.query(pictures[0], "is red", k=10**9)
    assert len(hits) == len(pictures) == len(set(hits.ids))
    assert len(searcher.query(hits[0], "is blue", k=10**9)) == len(pictures) - 1


@pytest.mark.parametrize("k", [0, -1, 2.0, True, "3", None])
def test_senseless_k(searcher: Searcher, pictures: list[Path], k: object) -> None:
    with pytest.raises(UsageError, match="k is"):
        searcher.query(pictures[0], "is red", k=k)  # type: ignore[arg-type]


def test_exclude_of_one_text_is_refused(searcher: Searcher, pictures: list[Path]) -> None:
    with pytest.raises(UsageError, match="exclude is one string"):
        searcher.query(pictures[0], "is red", exclude="sku-1")


def test_empty_gallery(tmp_path: Path, engine: Engine, pictures: list[Path]) -> None:
    Gallery.create(tmp_path / "empty.gallery", engine).close()
    with pytest.raises(GalleryError, match="empty"):
        Searcher(engine, tmp_path / "empty.gallery").query(pictures[0], "is red")


def test_missing_gallery_and_foreign_gallery(tmp_path: Path, engine: Engine, gallery_path: Path) -> None:
    with pytest.raises(GalleryError, match=r"nothing\.gallery"):
        Searcher(engine, tmp_path / "nothing.gallery")
    other = Engine(write_tiny_bundle(tmp_path / "other.cir", "separate"), device="cpu")
    same = Engine(write_tiny_bundle(tmp_path / "same.cir", "cosine"), device="cpu")
    assert same.fingerprint == engine.fingerprint, "the same image graph and preprocessing: the same rows"
    Searcher(same, gallery_path)
    features = Engine(write_tiny_bundle(tmp_path / "features.cir", "features"), device="cpu")
    assert other.fingerprint == engine.fingerprint
    with pytest.raises(GalleryError) as caught:
        Searcher(features, gallery_path)
    assert features.fingerprint[:8] in str(caught.value)
    assert engine.fingerprint[:8] in str(caught.value)


def test_the_gallery_defaults_to_the_bundles_own(bundle: Path, gallery_path: Path) -> None:
    searcher = Searcher(bundle, device="cpu")
    assert searcher.describe()["gallery"] == str(gallery_path)
    assert searcher.describe()["rows"] == 40


def test_a_device_for_an_engine_that_has_one(engine: Engine, gallery_path: Path) -> None:
    with pytest.raises(UsageError, match="already"):
        Searcher(engine, gallery_path, device="cpu")


@pytest.mark.parametrize("scorer", ["cpu", "cpu-int8", "reference"])
def test_every_scorer_gives_the_same_answer(
    engine: Engine, gallery_path: Path, pictures: list[Path], scorer: str
) -> None:
    auto, named = Searcher(engine, gallery_path), Searcher(engine, gallery_path, scorer=scorer)
    assert named.describe()["scorer"].split()[0] == scorer.split("-")[0]
    for image in pictures[:5]:
        expected, found = auto.query(image, "is red", k=40), named.query(image, "is red", k=40)
        assert found.ids == expected.ids
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_unknown_scorer(engine: Engine, gallery_path: Path, pictures: list[Path]) -> None:
    with pytest.raises(UsageError, match="scorer"):
        Searcher(engine, gallery_path, scorer="abacus").query(pictures[0], "is red")


def test_a_system_with_its_own_reference_encoder(tmp_path: Path, pictures: list[Path]) -> None:
    engine = Engine(write_tiny_bundle(tmp_path / "s.cir", "separate"), device="cpu")
    with Gallery.create(tmp_path / "s.gallery", engine) as gallery:
        gallery.add(pictures, ids=[path.stem for path in pictures])
    searcher = Searcher(engine, tmp_path / "s.gallery")
    hits = searcher.query(pictures[0], "is red")
    assert len(hits) == 10
    with pytest.raises(UsageError, match="pass the image of"):
        searcher.query(hits[0], "is blue")


def test_systems_of_one_input(tmp_path: Path, pictures: list[Path]) -> None:
    for system in ("text-only", "image-only"):
        engine = Engine(write_tiny_bundle(tmp_path / f"{system}.cir", system), device="cpu")
        with Gallery.create(tmp_path / f"{system}.gallery", engine) as gallery:
            gallery.add(pictures, ids=[path.stem for path in pictures])
    texts = Searcher(tmp_path / "text-only.cir", device="cpu")
    assert texts.query(None, "is red").ids == texts.query(pictures[0], "is red").ids
    with pytest.raises(UsageError, match="needs a text"):
        texts.query(pictures[0], None)
    images = Searcher(tmp_path / "image-only.cir", device="cpu")
    assert images.query(pictures[4], None).ids == images.query(pictures[4], "is red").ids
    with pytest.raises(UsageError, match="needs a reference image"):
        images.query(None, "is red")
    with pytest.raises(UsageError, match="reads no text"):
        images.engine.encode_texts(["is red"])


def test_a_hit_that_is_gone(tmp_path: Path, engine: Engine, pictures: list[Path]) -> None:
    with Gallery.create(tmp_path / "g.gallery", engine) as gallery:
        gallery.add(pictures, ids=[str(i) for i in range(len(pictures))])
        searcher = Searcher(engine, gallery)
        hit = searcher.query(pictures[0], "is red")[0]
        gallery.remove([hit.id])
        assert hit.id not in searcher.query(pictures[0], "is red", k=40).ids
        with pytest.raises(GalleryError, match="no item"):
            searcher.query(hit, "is blue")
        gallery.add([pictures[int(hit.id)]], ids=[hit.id])
        assert searcher.query(pictures[0], "is red")[0].id == hit.id
    with pytest.raises(GalleryError, match="no item"):
        Searcher(engine, tmp_path / "g.gallery").item("nothing")


def test_bad_images_and_texts_in_a_query(searcher: Searcher, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        searcher.query(tmp_path / "nothing.png", "is red")
    for text in ("", "   ", [], ["", " "]):
        with pytest.raises(TextError, match="empty"):
            searcher.query(pictures[0], text)


def test_unknown_words_are_answered_with_a_warning(
    searcher: Searcher, pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cir_infer"):
        assert len(searcher.query(pictures[0], "chartreuse paisley")) == 10
    assert "no word" in caplog.text


def test_unknown_words_of_many_queries_are_news_of_one_line(
    searcher: Searcher, pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"a {word} square" for word in ("puce", "ecru", "teal")]
    with caplog.at_level(logging.WARNING, "cir_infer"):
        answers = searcher.query_batch(pictures[:3], texts)
        searcher.engine.encode_texts([text.replace("square", "ball") for text in texts], batch_size=2)
    assert [hits.unknown_words for hits in answers] == [("puce",), ("ecru",), ("teal",)]
    assert [record.getMessage()[:12] for record in caplog.records] == ["3 of 3 texts"] * 2


def test_threads_share_a_searcher(searcher: Searcher, pictures: list[Path]) -> None:
    texts = ["is red", "is longer", "is blue", "a green square"]
    jobs = [(pictures[i % 40], texts[i % 4]) for i in range(200)]
    alone = {job: searcher.query(*job) for job in set(jobs)}

    def refine(job: tuple[Path, str]) -> bool:
        hits = searcher.query(*job)
        refined = searcher.query(hits[0], "more square")
        return hits == alone[job] and hits[0].id not in refined.ids

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(refine, jobs))


def test_a_hit_tells_what_it_has() -> None:
    hit = Hit("a", 1, 1.5, {"implicit_similarity": 1.0, "explicit_matching": 0.5}, {"price": 3})
    assert hit.implicit_similarity == 1.0
    assert hit.as_dict()["metadata"] == {"price": 3}
    with pytest.raises(AttributeError, match="explicit_matching"):
        hit.colour  # noqa: B018


def test_many_excluded_ids_are_one_look_up(
    searcher: Searcher, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = [hit.id for hit in searcher.query(pictures[0], "is red", k=len(pictures))]
    keep = everything.pop(1)
    several = [*everything, *(f"nobody {number}" for number in range(20_000)), *everything]
    monkeypatch.setattr(Snapshot, "row", None)  # no look-up for each id
    for exclude in (several, np.array(several), set(several), iter(several)):
        hits = searcher.query(pictures[0], "is red", k=len(pictures), exclude=exclude)  # type: ignore[arg-type]
        assert [hit.id for hit in hits] == [keep]


@pytest.mark.parametrize("exclude", [5, [5], ["a", None], [b"a"], b"a"])
def test_excluded_ids_that_are_no_texts_are_refused(
    searcher: Searcher, pictures: list[Path], exclude: Any
) -> None:
    with pytest.raises(UsageError, match=r"exclude.* is .*expected"):
        searcher.query(pictures[0], "is red", exclude=exclude)


def test_a_first_query_imports_nothing_that_it_does_not_need(
    bundle: Path, gallery_path: Path, pictures: list[Path]
) -> None:
    """Changes, copies and looks through a gallery, masked arrays, decoders of rare formats."""
    program = (
        "import sys; from cir_infer import Searcher\n"
        "hits = Searcher(sys.argv[1], sys.argv[2], device='cpu').query(sys.argv[3], 'is red', k=2)\n"
        "gallery = 'cir_infer.gallery.'\n"
        "rare = (gallery + 'copies.', gallery + 'inspection.', gallery + 'changes.reencoding')\n"
        "rare += ('numpy.ma.', 'PIL.Eps', 'asyncio')\n"
        "print(len(hits), [name for name in sys.modules if name.startswith(rare)])"
    )
    command = [sys.executable, "-c", program, str(bundle), str(gallery_path), str(pictures[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "2 []"
