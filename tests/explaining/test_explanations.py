"""Explanations add up, and say what asking again without a part says."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from cir_infer import CirError, Engine, Hit, Hits, Searcher
from cir_infer.bundle.manifest import Explain
from cir_infer.errors import BundleError, GalleryError, ImageError, TextError, UsageError
from cir_infer.explaining import Explanation
from cir_infer.explaining.pictures import covered
from cir_infer.explaining.shares import values_of
from tests.bundles import SIDE, explain_graph, manifest_of, members_of, write_bundle
from tests.explaining.conftest import COUNT, Open

IS, EM = "implicit_similarity", "explicit_matching"


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("balance", [None, {IS: -2.0, EM: 0.5}])
def test_shares_and_rest_are_the_term_as_it_was_scored(
    opened: Open, pictures: list[Path], dtype: str, balance: Any
) -> None:
    searcher = opened(dtype=dtype)
    hits = searcher.query(pictures[1], "is red", k=COUNT, balance=balance)
    for hit, found in zip(hits, hits.explain_all(), strict=True):
        assert found.id == hit.id and found.method == "shares" and found.balance == hits.balance
        assert found.score == pytest.approx(hit.score, abs=1e-6)
        for name, heat in found.terms.items():
            assert heat.map.shape == (8, 8) and heat.map.dtype == np.float32
            assert heat.value == pytest.approx(hit.terms[name], abs=1e-6)
            assert float(heat.map.sum(dtype=float)) + heat.rest == pytest.approx(hit.terms[name], abs=1e-4)
            # The encoder has no constant: what is left is the rounding of the stored row.
            assert abs(heat.rest) < {"float32": 1e-5, "float16": 2e-3, "int8": 2e-2}[dtype] * 2


def test_a_share_is_the_term_of_that_position_alone(opened: Open, pictures: list[Path]) -> None:
    """The numerator on one pixel's part of the row, under the denominator of the whole row."""
    searcher = opened()
    engine = searcher.engine
    found = searcher.explain("sku-4", pictures[1], "is red")
    batch = engine.prepare(pictures[4])[None].astype(float) - 127.5
    weights = np.random.default_rng(0).normal(size=(8, 8, 3, 8))
    parts = np.einsum("nhwc,hwcd->hwd", batch, weights)
    row = parts.sum((0, 1))
    terms = engine.compose(engine.encode_images([pictures[1]]), engine.encode_texts(["is red"]))
    assert terms.weights is not None
    for j, name in enumerate((IS, EM)):
        expected = parts @ terms.numerators[0, j] / np.sqrt(terms.weights[0, j] @ row**2)
        np.testing.assert_allclose(found.terms[name].map, expected, atol=1e-5)


def test_a_cell_of_the_reference_is_worth_what_is_lost_without_it(opened: Open, pictures: list[Path]) -> None:
    searcher = opened()
    engine = searcher.engine
    found = searcher.explain("sku-4", pictures[1], "is red")
    made = engine.encode_in_parts(engine.prepare(pictures[1])[None])
    target = engine.encode_images([pictures[4]])[0].astype(float)
    text = engine.encode_texts(["is red"])
    for row, column in ((0, 0), (3, 5), (7, 2)):
        left = made.parts[0].sum((0, 1)) - made.parts[0, row, column]
        terms = engine.compose((left / np.linalg.norm(left))[None], text)
        assert terms.weights is not None
        for j, name in enumerate((IS, EM)):
            value = terms.numerators[0, j] @ target / np.sqrt(terms.weights[0, j] @ target**2)
            heat = found.reference[name]
            assert heat.method == "left out"
            assert heat.map[row, column] == pytest.approx(heat.value - value, abs=1e-5)
    assert np.abs(found.reference[EM].map).max() < 1e-6, "explicit matching does not read the reference"


@pytest.mark.parametrize("text", ["is red and longer", "is  red", ["more blue", "a square"], "red 深い is"])
def test_a_word_is_worth_what_asking_without_it_says(opened: Open, pictures: list[Path], text: Any) -> None:
    searcher = opened()
    hit = searcher.query(pictures[1], text, k=3)[2]
    found = searcher.explain(hit, pictures[1], text)
    captions = [text] if isinstance(text, str) else text
    assert [word.text for word in found.words] == [
        *captions[0].replace("深い", "深 い").split(),
        *(word for caption in captions[1:] for word in caption.split()),
    ]
    for word in found.words:
        caption = captions[word.caption]
        assert caption[word.start : word.end] == word.text
        without = list(captions)
        without[word.caption] = f"{caption[: word.start]} {caption[word.end :]}"
        again = searcher.query(pictures[1], without[0] if isinstance(text, str) else without, k=COUNT)
        (same,) = [other for other in again if other.id == hit.id]
        for name in (IS, EM):
            assert word.worth[name] == pytest.approx(hit.terms[name] - same.terms[name], abs=1e-5)


def test_the_only_word_leaves_the_tokens_around_it(opened: Open, pictures: list[Path]) -> None:
    (word,) = opened().explain("sku-3", pictures[1], "red").words
    assert (word.start, word.end) == (0, 3) and abs(word.worth[EM]) > 1e-4


def test_without_the_graph_patches_are_painted_over(opened: Open, pictures: list[Path]) -> None:
    searcher = opened(explained=False)
    engine = searcher.engine
    hit = searcher.query(pictures[1], "is red", k=4)[3]
    found = searcher.explain(hit, pictures[1], "is red")
    assert found.method == "occlusion" == found.reference[IS].method
    assert "painted over; such values do not add up" in repr(found)
    assert "painted over" not in repr(opened().explain("sku-3", pictures[1], "is red"))
    picture = engine.prepare(hit.source or "")
    painted = covered(picture)
    assert painted.shape == (49, 8, 8, 3) and (painted != picture).any((1, 2, 3)).all()
    assert ((painted != picture).any(-1).sum((1, 2)) <= 4).all()
    terms = engine.compose(engine.encode_images([pictures[1]]), engine.encode_texts(["is red"]))
    assert terms.weights is not None
    rows = engine.encode_prepared(np.concatenate([picture[None], painted])).astype(float)
    for j, name in enumerate((IS, EM)):
        values = rows @ terms.numerators[0, j] / np.sqrt(rows**2 @ terms.weights[0, j])
        heat = found.terms[name]
        np.testing.assert_allclose(heat.map, (values[0] - values[1:]).reshape(7, 7), atol=1e-5)
        assert heat.map.sum(dtype=float) + heat.rest == pytest.approx(hit.terms[name], abs=1e-5)


@pytest.mark.parametrize(
    ("system", "explained", "reference", "words"),
    [
        ("cosine", True, "left out", 2),
        ("separate", True, "occlusion", 2),  # the reference is no gallery row
        ("text-only", True, None, 2),
        ("image-only", True, "left out", 0),
    ],
)
def test_every_kind_of_system(
    opened: Open, pictures: list[Path], system: str, explained: bool, reference: str | None, words: int
) -> None:
    searcher = opened(system, explained)
    asked = (
        pictures[1] if searcher.engine.needs_reference else None,
        "is red" if searcher.engine.needs_text else None,
    )
    hits = searcher.query(*asked, k=5)
    for hit, found in zip(hits, hits.explain_all(), strict=True):
        (heat,) = found.terms.values()
        assert found.method == "shares"
        assert heat.map.sum(dtype=float) + heat.rest == pytest.approx(hit.score, abs=1e-4)
        assert {one.method for one in found.reference.values()} == ({reference} if reference else set())
        assert len(found.words) == words


def test_items_of_several_vectors_are_painted_over(opened: Open, pictures: list[Path]) -> None:
    searcher = opened("tokens", False)
    engine = searcher.engine
    hits = searcher.query(pictures[1], "is red", k=3)
    for hit, found in zip(hits, hits.explain_all(), strict=True):
        assert found.method == "occlusion" == next(iter(found.reference.values())).method
        assert found.score == pytest.approx(hit.score, abs=1e-5)
        assert len(found.words) == 2
    picture = engine.prepare(hits[2].source or "")
    painted = engine.encode_prepared(covered(picture))
    assert painted.ndim == 3
    terms = engine.compose(engine.encode_references([pictures[1]]), engine.encode_texts(["is red"]))
    (heat,) = hits.explain(2).terms.values()
    whole = values_of(terms, engine.encode_prepared(picture[None])[0])[0, 0]
    expected = [whole - values_of(terms, row)[0, 0] for row in painted]
    np.testing.assert_allclose(heat.map.reshape(-1), expected, atol=1e-6)


def test_ten_hits_take_eleven_encodings(
    opened: Open, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = opened()
    hits = searcher.query(pictures[1], "is red", k=10)
    encoded: list[int] = []
    encode = Engine.encode_in_parts
    for name in ("encode_prepared", "encode_prepared_references", "encode_references"):
        monkeypatch.setattr(Engine, name, lambda *_: pytest.fail("another encoding"))
    monkeypatch.setattr(
        Engine, "encode_in_parts", lambda self, batch: encoded.append(len(batch)) or encode(self, batch)
    )
    whole = hits.explain_all()
    assert sum(encoded) == 11
    one = hits.explain(3)
    assert sum(encoded) == 12, "what hits share is there already"
    np.testing.assert_array_equal(one.terms[IS].map, whole[3].terms[IS].map)
    assert hits.explain(hits[3]).as_dict() == one.as_dict() == hits[2:5].explain(1).as_dict()
    assert hits.explain(-7).id == hits[3].id
    direct = searcher.explain(hits[3], pictures[1], "is red")
    assert direct.words == one.words and direct.id == one.id
    assert "explicit matching" in repr(one) and "red" in repr(one)
    assert not re.search(r"-0\.0+(\s|$)", repr(one)), "rests of rounding are told as on the sheet"
    assert abs(one.terms[IS].rest) < 5e-5 and f"{one.terms[IS].rest:.1e}" in repr(one)


def test_a_refined_hit_is_explained_on_its_own_picture(opened: Open, pictures: list[Path]) -> None:
    searcher = opened(dtype="float16")
    hits = searcher.query(searcher.item("sku-2"), "is blue", k=3)
    found = hits.explain(1)
    assert found.score == pytest.approx(hits[1].score, abs=1e-6)
    with Image.open(pictures[2]) as image:
        assert found.reference[IS].size == image.size
    assert searcher.explain("sku-2", searcher.item("sku-2"), "is blue").id == "sku-2"


def test_boxes_are_of_the_original(opened: Open, pictures: list[Path]) -> None:
    found = opened().explain("sku-4", pictures[1], "is red")
    for path, heat in ((pictures[4], found.terms[IS]), (pictures[1], found.reference[IS])):
        with Image.open(path) as image:
            assert heat.size == image.size
        left, top, right, bottom = heat.box
        width, height = heat.size
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        # The middle of the longer side, all of the shorter one.
        assert (left, right) == (0, width) or (top, bottom) == (0, height)


def test_answers_of_many_queries_are_explained_each_by_its_own(opened: Open, pictures: list[Path]) -> None:
    searcher = opened()
    texts = ["is red", "is blue"]
    for place, hits in enumerate(searcher.query_batch(pictures[:2], texts, k=3, balance={IS: 2.0})):
        expected = searcher.explain(hits[0], pictures[place], texts[place], {IS: 2.0})
        assert hits.explain(0).as_dict() == expected.as_dict()
        assert expected.score == pytest.approx(hits[0].score, abs=1e-6)


def gone(found: Any) -> CirError:
    assert isinstance(found, CirError)
    return found


def test_what_cannot_be_explained_says_what_to_do(opened: Open, pictures: list[Path], tmp_path: Path) -> None:
    searcher = opened()
    kept = [tmp_path / path.name for path in pictures[:4]]
    for old, new in zip(pictures, kept, strict=False):
        new.write_bytes(old.read_bytes())
    gallery: Any = searcher.gallery
    gallery.add(kept, ids=["gone", "altered", "replaced", "removed"])
    gallery.add_vectors(ids=["vector"], vectors=searcher.engine.encode_images([pictures[5]]))
    hits = searcher.query(pictures[1], "is red", k=30)
    assert isinstance(searcher.explain("gone", pictures[1], "is red"), Explanation)
    kept[0].unlink()
    kept[1].write_bytes(pictures[9].read_bytes())
    gallery.remove(["replaced", "removed"])
    gallery.add([pictures[8]], ids=["replaced"])
    with pytest.raises(ImageError, match=r"the image of 'gone': .*; or pass it itself"):
        searcher.explain("gone", pictures[1], "is red")
    assert searcher.explain("gone", pictures[1], "is red", image=pictures[0]).id == "gone"
    with pytest.raises(ImageError, match=r"no longer the image that was indexed as 'altered'"):
        searcher.explain("altered", pictures[1], "is red")
    by_id = {hit.id: hit for hit in hits}
    with pytest.raises(GalleryError, match="of another gallery, or was replaced"):
        hits.explain(by_id["replaced"])
    with pytest.raises(GalleryError, match="no item 'removed'"):
        hits.explain(by_id["removed"])
    with pytest.raises(ImageError, match=r"does not know where the image of 'vector' came from; pass"):
        hits.explain(by_id["vector"])
    assert hits.explain(by_id["vector"], image=pictures[5]).id == "vector"
    found = hits.explain_all(errors="return")
    assert sum(isinstance(one, CirError) for one in found) == 5
    assert [one.id for one in found if isinstance(one, Explanation)] == [
        hit.id for hit in hits if hit.id.startswith("sku")
    ]
    with pytest.raises(CirError):
        hits.explain_all()
    with pytest.raises(UsageError, match="is none of these"):
        hits.explain(Hit("sku-99"))
    for place in (len(hits), -len(hits) - 1, "first", True, 1.0):
        with pytest.raises(UsageError, match="hit is"):
            hits.explain(place)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="expected a Hit or the id"):
        searcher.explain(3, pictures[1], "is red")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="errors is 'ignore'"):
        hits.explain_all(errors="ignore")  # type: ignore[call-overload]
    for copied in (pickle.loads(pickle.dumps(hits)), Hits(list(hits))):
        assert copied == hits
        with pytest.raises(UsageError, match=r"do not know how they were found.*Searcher\.explain"):
            copied.explain(0)


def test_a_changed_row_is_not_passed_off_as_the_one_that_was_found(
    opened: Open, pictures: list[Path], tmp_path: Path
) -> None:
    searcher = opened()
    same = tmp_path / "same.png"
    same.write_bytes(pictures[6].read_bytes())
    searcher.gallery.add([same], ids=["mine"])
    hits = searcher.query(pictures[1], "is red", k=30)
    same.write_bytes(pictures[7].read_bytes())
    searcher.gallery.remove(["mine"])
    searcher.gallery.add([same], ids=["mine"])
    (hit,) = [hit for hit in hits if hit.id == "mine"]
    with pytest.raises(GalleryError, match=r"'mine' was found with .*ask again"):
        hits.explain(hit)
    assert searcher.explain(hit, pictures[1], "is red").score != pytest.approx(hit.score, abs=1e-4)


def test_questions_that_cannot_be_asked(opened: Open, pictures: list[Path]) -> None:
    searcher = opened()
    with pytest.raises(UsageError, match="needs a reference"):
        searcher.explain("sku-1", None, "is red")
    with pytest.raises(TextError, match="empty"):
        searcher.explain("sku-1", pictures[0], " ")
    with pytest.raises(ImageError):
        searcher.explain("sku-1", "nowhere.png", "is red")
    with pytest.raises(UsageError, match="balance names a term"):
        searcher.explain("sku-1", pictures[0], "is red", {"colour": 2.0})
    hits = searcher.query(pictures[0], "is red", k=2)
    searcher.close()
    with pytest.raises(UsageError, match="closed"):
        hits.explain(0)


def test_features_have_no_places(tmp_path: Path) -> None:
    from cir_infer import Gallery
    from tests.bundles import write_tiny_bundle

    engine = Engine(write_tiny_bundle(tmp_path / "f.cir", "features"), device="cpu", threads=1)
    features = list(np.random.default_rng(0).random((4, 12), np.float32))
    with Gallery.create(tmp_path / "f.gallery", engine) as gallery:
        gallery.add(features, ids=["a", "b", "c", "d"])
        with Searcher(engine, gallery) as searcher:
            hits = searcher.query(features[0], "is red", k=2)
            with pytest.raises(UsageError, match="pre-extracted features, which have no places"):
                hits.explain(0)


def broken_graph(value: str, operator: str, *constants: np.ndarray) -> bytes:
    """The graph that explains, with an operator behind one of its outputs."""
    model = onnx.load_model_from_string(explain_graph())
    (node,) = [node for node in model.graph.node if value in node.output]
    node.output[0] = "as_it_was"
    names = [f"constant{number}" for number in range(len(constants))]
    for name, constant in zip(names, constants, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
    model.graph.node.append(onnx.helper.make_node(operator, ["as_it_was", *names], [value]))
    data: bytes = model.SerializeToString()
    return data


FIRST = tuple(np.array([number], np.int64) for number in (0, 1, 0))


@pytest.mark.parametrize(
    ("value", "operator", "constants", "message"),
    [
        ("parts", "Slice", FIRST, "the explain graph makes parts of shape .1, 8, 8, 8. of 3 inputs"),
        ("constant", "Slice", FIRST, "the explain graph makes constant of shape"),
        ("parts", "Tile", (np.array([2, 1, 1, 1], np.int64),), "makes parts of shape .6, 8, 8, 8. of 3"),
        ("parts", "Mul", (np.array(np.nan, np.float32),), "gives NaN or infinity as parts"),
        ("constant", "Mul", (np.array(np.inf, np.float32),), "gives NaN or infinity as constant"),
    ],
)
def test_a_graph_that_explains_other_pictures_than_it_was_given(
    tmp_path: Path,
    pictures: list[Path],
    value: str,
    operator: str,
    constants: tuple[np.ndarray, ...],
    message: str,
) -> None:
    manifest = manifest_of("artemis", explain=Explain("explain.onnx", SIDE, SIDE, True))
    graph = broken_graph(value, operator, *constants)
    write_bundle(tmp_path / "b.cir", manifest, {**members_of("artemis"), "explain.onnx": graph})
    with Engine(tmp_path / "b.cir", device="cpu", threads=1) as engine:
        batch = np.stack([engine.prepare(picture) for picture in pictures[:3]])
        with pytest.raises(BundleError, match=message):
            engine.encode_in_parts(batch)


def test_an_encoder_that_loses_pictures(tmp_path: Path, pictures: list[Path]) -> None:
    """Rows of a batch belong to its pictures, one each; a graph may say so and make fewer."""
    members = members_of("artemis")
    model = onnx.load_model_from_string(members["image.onnx"])
    (node,) = [node for node in model.graph.node if "embedding" in node.output]
    node.output[0] = "as_it_was"
    names = ["from", "to", "axis"]
    for name, constant in zip(names, FIRST, strict=True):
        model.graph.initializer.append(onnx.numpy_helper.from_array(constant, name))
    model.graph.node.append(onnx.helper.make_node("Slice", ["as_it_was", *names], ["embedding"]))
    members["image.onnx"] = model.SerializeToString()
    write_bundle(tmp_path / "b.cir", manifest_of("artemis"), members)
    with Engine(tmp_path / "b.cir", device="cpu", threads=1) as engine:
        assert engine.encode_images(pictures[:1]).shape == (1, 8)
        with pytest.raises(BundleError, match=r"the image graph makes embedding of shape .* of 3 inputs"):
            engine.encode_images(pictures[:3])
