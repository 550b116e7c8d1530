"""What comes with an answer: bad queries among good ones, the reference itself, words nobody knows."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cir_infer import Engine, Gallery, Hits, Searcher
from cir_infer.errors import GalleryError, ImageError, ScoringError, TextError, UsageError
from cir_infer.hits import Hit
from cir_infer.inputs.preparing import PreparedImage
from cir_infer.scoring.contract import Rows
from cir_infer.searching.recognition import FileName, same_rows
from tests.bundles import DIM, write_tiny_bundle

TEXT = "is red"


# ---- one bad query among several


def bad_batch(searcher: Searcher, pictures: list[Path], folder: Path) -> tuple[list[Any], list[Any]]:
    hit = searcher.item("sku-3")
    images: list[Any] = [
        pictures[0],
        folder / "nothing.png",
        pictures[1],
        hit,
        Hit("gone"),
        pictures[2],
        None,
        b"x",
    ]
    texts: list[Any] = [TEXT, TEXT, "", "is longer", TEXT, ["a", "b", "c"], TEXT, "is blue"]
    return images, texts


BAD = {1: ImageError, 2: TextError, 4: GalleryError, 5: TextError, 6: UsageError, 7: ImageError}


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_a_bad_query_costs_only_itself(
    searcher: Searcher, pictures: list[Path], tmp_path: Path, size: int
) -> None:
    images, texts = bad_batch(searcher, pictures, tmp_path)
    answers = list(searcher.query_batch(images, texts, k=5, batch_size=size, errors="return"))
    assert len(answers) == len(images)
    for number, answer in enumerate(answers):
        if number in BAD:
            assert type(answer) is BAD[number]
            assert str(answer).startswith(f"query {number}: ")
            assert "image 0" not in str(answer)
        else:
            assert isinstance(answer, Hits)
            alone = searcher.query(images[number], texts[number], k=5)
            assert answer.ids == alone.ids
            np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_the_first_bad_query_ends_the_answers_and_is_numbered(
    searcher: Searcher, pictures: list[Path], tmp_path: Path, size: int
) -> None:
    images = [searcher.item("sku-1"), pictures[0], pictures[1], tmp_path / "nothing.png", pictures[2]]
    answers = searcher.query_batch(images, [TEXT] * 5, batch_size=size)
    got: list[Hits] = []
    with pytest.raises(ImageError, match=r"^query 3: .*nothing\.png does not exist"):
        got.extend(answers)
    assert len(got) == 3, "the answers before it were given"


def test_a_single_query_has_no_number(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        searcher.query(tmp_path / "nothing.png", TEXT)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_query_that_composes_to_nothing_finite_costs_only_itself(
    searcher: Searcher, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compose = searcher.engine.compose
    odd = searcher.engine.encode_references(pictures[1:2])[0]

    def checked(reference: Any, text: Any) -> Any:
        if (reference == odd).all(axis=1).any():
            raise ScoringError("a numerator holds NaN or infinity")
        return compose(reference, text)

    monkeypatch.setattr(searcher.engine, "compose", checked)
    answers = list(searcher.query_batch(pictures[:3], [TEXT] * 3, errors="return"))
    assert [type(answer) for answer in answers] == [Hits, ScoringError, Hits]


def test_bad_images_beside_good_ones_when_encoding(engine: Engine, pictures: list[Path]) -> None:
    images: list[Any] = [b"x", pictures[0], 5, pictures[1], pictures[2], b"y"]
    good = engine.encode_images(pictures[:3])
    for size in (1, 2, 32):
        rows, failed = engine.encode_images(images, size, errors="return")
        assert sorted(failed) == [0, 2, 5]
        assert all(str(error).startswith(f"image {number}: ") for number, error in failed.items())
        np.testing.assert_allclose(rows[[1, 3, 4]], good, atol=1e-6)
        assert np.isnan(rows[[0, 2, 5]]).all()
    rows, failed = engine.encode_images([b"x", b"y"], errors="return")
    assert rows.shape == (2, DIM) and np.isnan(rows).all() and len(failed) == 2
    rows, failed = engine.encode_images([], errors="return")
    assert rows.shape == (0, DIM) and not failed
    with pytest.raises(ImageError, match=r"^image 2: "):
        engine.encode_images([*pictures[:2], 5], 1)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="errors is"):
        engine.encode_images(pictures[:1], errors="ignore")  # type: ignore[call-overload]


# ---- the reference in its own answer


def test_the_reference_is_named_when_the_gallery_holds_it(searcher: Searcher, pictures: list[Path]) -> None:
    held = searcher.query(pictures[4], TEXT, k=40)
    assert held.reference_id == "sku-4"
    assert held[:3].reference_id == "sku-4"
    for kind in (pictures[4].read_bytes(), io.BytesIO(pictures[4].read_bytes()), Image.open(pictures[4])):
        assert searcher.query(kind, TEXT, k=40).reference_id == "sku-4", "by its row"
    strange = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8))
    assert searcher.query(strange, TEXT, k=40).reference_id is None


def test_a_hit_of_another_gallery_or_of_a_replaced_item_is_refused(
    engine: Engine, searcher: Searcher, pictures: list[Path], tmp_path: Path
) -> None:
    copied = tmp_path / "same.gallery"
    with Gallery.create(copied, engine, dtype="int8") as copy:
        copy.add(pictures, ids=[f"sku-{i}" for i in range(len(pictures))])
    with Gallery.create(tmp_path / "other.gallery", engine) as other:
        other.add(pictures[::-1], ids=[f"sku-{i}" for i in range(len(pictures))])
        other.add_vectors(ids=["vector"], vectors=engine.encode_images(pictures[:1]))
        with Searcher(engine, copied) as same, Searcher(engine, other) as asked:
            hit = searcher.query(pictures[0], TEXT)[0]
            assert hit.id not in same.query(hit, TEXT, k=5).ids, "the same picture under the same id"
            with pytest.raises(GalleryError, match="of another gallery, or was replaced: ask again"):
                asked.query(hit, TEXT)
            bad, good = asked.query_batch([hit, asked.item(hit.id)], [TEXT] * 2, errors="return")
            assert isinstance(bad, GalleryError) and isinstance(good, Hits)
            assert good.ids == asked.query(Hit(hit.id), TEXT).ids, "an id alone is what the gallery holds"
            assert asked.query(asked.item("vector"), TEXT)
            mine = asked.query(pictures[0], TEXT, k=3)
            other.add([pictures[7]], ids=[mine[0].id], existing="replace")
            with pytest.raises(GalleryError, match="was replaced"):
                asked.query(mine[0], TEXT)
            with pytest.raises(GalleryError, match="was replaced"):
                asked.explain(mine[1], mine[0], TEXT)


def test_what_others_in_a_batch_ask_changes_no_answer(searcher: Searcher, pictures: list[Path]) -> None:
    hit = searcher.query(pictures[0], TEXT)[0]
    beyond = 0
    for picture in pictures:
        every = searcher.query(picture, TEXT, k=40)
        place = every.ids.index(str(every.reference_id))
        if place == 0:
            continue
        beyond += 1
        # A refined Hit asks for one more, and there the reference of the other query is.
        alone = searcher.query(picture, TEXT, k=place)
        beside, refined = searcher.query_batch([picture, hit], [TEXT] * 2, k=place)
        assert alone.reference_id is None and beside.reference_id is None
        assert [one.as_dict() for one in beside] == [one.as_dict() for one in alone]
        assert refined.ids == searcher.query(hit, TEXT, k=place).ids
    assert beyond > 0


def test_the_reference_is_left_out_where_asked(searcher: Searcher, pictures: list[Path]) -> None:
    for image in (pictures[4], pictures[4].read_bytes()):
        every = searcher.query(image, TEXT, k=40)
        for k in (1, 5, 39, 40):
            left = searcher.query(image, TEXT, k=k, exclude_reference=True)
            assert left.ids == [id for id in every.ids if id != "sku-4"][:k]
            assert [hit.rank for hit in left] == list(range(1, len(left) + 1))
        assert searcher.query(image, TEXT, k=40, exclude_reference=True).reference_id == "sku-4"
    several = list(searcher.query_batch(pictures[:6], [TEXT] * 6, k=40, exclude_reference=True))
    assert all(f"sku-{number}" not in hits.ids and len(hits) == 39 for number, hits in enumerate(several))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_one_picture_under_many_names_is_left_out_everywhere(
    tmp_path: Path, engine: Engine, pictures: list[Path], dtype: str
) -> None:
    with Gallery.create(tmp_path / "g", engine, dtype=dtype) as gallery:
        copies = [pictures[0].read_bytes()] * 12
        gallery.add(
            [*copies, *pictures[1:20]], ids=[f"copy-{i}" for i in range(12)] + [str(i) for i in range(1, 20)]
        )
        searcher = Searcher(engine, gallery)
        for k in (1, 5, 19, 40):
            hits = searcher.query(pictures[0], TEXT, k=k, exclude_reference=True)
            assert len(hits) == min(k, 19)
            assert not any(id.startswith("copy") for id in hits.ids)
            assert str(hits.reference_id).startswith("copy") or k == 1
        filtered = searcher.query(pictures[0], TEXT, k=40, exclude=["1", "2"], exclude_reference=True)
        assert len(filtered) == 17


@pytest.mark.parametrize(("precision", "apart"), [("float32", 0.001), ("float16", 0.006), ("int8", 0.03)])
def test_rows_that_another_machine_made_are_known_as_far_apart_as_a_precision_lets_them_be(
    tmp_path: Path, engine: Engine, pictures: list[Path], precision: str, apart: float
) -> None:
    """ResNet-50's int8 rows of one picture on two libraries were 2% of the largest value apart."""
    rows = engine.encode_images(pictures).copy()
    rows[4, 0] += apart * np.abs(rows[4]).max()
    with Engine(write_tiny_bundle(tmp_path / "lower.cir", precision=precision), device="cpu") as lower:
        ids = [str(number) for number in range(len(rows))]
        made = {"ids": ids, "vectors": rows, "engine": lower, "dtype": "float32"}
        with Gallery.from_arrays(tmp_path / "g", **made) as gallery:
            hits = Searcher(lower, gallery).query(
                pictures[4].read_bytes(), TEXT, k=40, exclude_reference=True
            )
            assert hits.reference_id == "4" and len(hits) == 39


def test_a_system_with_its_own_reference_encoder_knows_it_too(tmp_path: Path, pictures: list[Path]) -> None:
    engine = Engine(write_tiny_bundle(tmp_path / "s.cir", "separate"), device="cpu")
    with Gallery.create(tmp_path / "s.gallery", engine) as gallery:
        gallery.add(pictures, ids=[path.stem for path in pictures])
        searcher = Searcher(engine, gallery)
        assert searcher.query(pictures[3], TEXT, k=40).reference_id == pictures[3].stem, "by its path"
        data = pictures[3].read_bytes()
        hits = searcher.query(data, TEXT, k=40, exclude_reference=True)
        assert hits.reference_id == pictures[3].stem and len(hits) == 39, "by its row"


def test_a_refined_hit_is_left_out_and_its_copies_where_asked(
    tmp_path: Path, engine: Engine, pictures: list[Path]
) -> None:
    with Gallery.create(tmp_path / "g", engine) as gallery:
        gallery.add([pictures[0].read_bytes()] * 2 + pictures[1:9], ids=["a", "b", *map(str, range(8))])
        searcher = Searcher(engine, gallery)
        refined = searcher.query(searcher.item("a"), TEXT, k=40)
        assert "a" not in refined.ids and "b" in refined.ids
        left = searcher.query(searcher.item("a"), TEXT, k=40, exclude_reference=True)
        assert "b" not in left.ids and left.reference_id == "b"


def test_rows_of_other_pictures_are_not_taken_for_the_reference() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((200, 64)).astype(np.float32)
    rows[1] = rows[0] * (1 + 1e-4)
    rows[2] = rows[0] + 0.02 * np.abs(rows[0]).max()
    stored = Rows.of(rows.astype(np.float16))
    assert np.flatnonzero(same_rows(stored, np.arange(200), rows[0])).tolist() == [0, 1]
    assert not same_rows(stored, np.full(3, -1), rows[0]).any()


def test_files_are_known_by_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path)
    source = str(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    for path in (source, Path(source), "a.jpg", "./a.jpg", "link/a.jpg"):
        assert FileName(path).is_of(source), path
    for other in ("b.jpg", b"x", None, 5, "\0a.jpg"):
        assert not FileName(other).is_of(source)
    assert not FileName(source).is_of(None)


# ---- words nobody knows


def test_unknown_words_come_with_the_answer(searcher: Searcher, pictures: list[Path]) -> None:
    assert searcher.query(pictures[0], TEXT).unknown_words == ()
    assert searcher.query(pictures[0], "is Chartreuse and red").unknown_words == ("Chartreuse",)
    answers = list(searcher.query_batch(pictures[:2], [["is paisley", "is taupe"], TEXT]))
    assert [hits.unknown_words for hits in answers] == [("paisley", "taupe"), ()]
    assert searcher.engine.describe()["vocabulary"] == {"kind": "words", "known": 15}


# ---- orientation


def photo_on_its_side(path: Path) -> Path:
    random = np.random.default_rng(3)
    small = Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8)).resize(
        (40, 24), Image.Resampling.BICUBIC
    )
    exif = Image.Exif()
    exif[0x0112] = 6
    small.save(path, "JPEG", quality=95, exif=exif)
    return path


def test_photos_are_turned_upright_where_asked(tmp_path: Path, bundle: Path, engine: Engine) -> None:
    photo = photo_on_its_side(tmp_path / "a.jpg")
    with Image.open(photo) as opened:
        from PIL import ImageOps

        turned = ImageOps.exif_transpose(opened)
    upright = Engine(bundle, device="cpu", exif_orientation=True)
    np.testing.assert_array_equal(upright.encode_images([photo]), engine.encode_images([turned]))
    assert np.abs(upright.encode_images([photo]) - engine.encode_images([photo])).max() > 1e-3
    assert upright.fingerprint != engine.fingerprint
    assert Engine(bundle, device="cpu", exif_orientation=False).fingerprint == engine.fingerprint
    assert upright.describe()["exif_orientation"] is True


def test_a_searcher_turns_photos_as_the_gallery_was_indexed(
    tmp_path: Path, bundle: Path, engine: Engine
) -> None:
    photo = photo_on_its_side(tmp_path / "a.jpg")
    upright = Engine(bundle, device="cpu", exif_orientation=True)
    with Gallery.create(tmp_path / "g", upright) as gallery:
        gallery.add([photo.read_bytes()], ids=["a"])
    with Searcher(bundle, tmp_path / "g", device="cpu") as searcher:
        assert searcher.engine.fingerprint == upright.fingerprint
        assert searcher.query(photo.read_bytes(), TEXT).reference_id == "a"
    with pytest.raises(GalleryError):
        Searcher(bundle, tmp_path / "g", device="cpu", exif_orientation=False)
    with pytest.raises(GalleryError):
        Searcher(engine, tmp_path / "g")


def test_features_have_no_orientation(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="features"):
        Engine(write_tiny_bundle(tmp_path / "f.cir", "features"), device="cpu", exif_orientation=True)


# ---- asyncio


def test_queries_of_an_event_loop(searcher: Searcher, pictures: list[Path]) -> None:
    async def ask() -> list[Hits]:
        return await asyncio.gather(*(searcher.aquery(picture, TEXT, k=3) for picture in pictures[:8]))

    assert asyncio.run(ask()) == [searcher.query(picture, TEXT, k=3) for picture in pictures[:8]]
    with pytest.raises(UsageError, match="k is"):
        asyncio.run(searcher.aquery(pictures[0], TEXT, k=0))


def test_a_cancelled_query_leaves_nothing_broken(
    searcher: Searcher, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = searcher.query(pictures[0], TEXT)
    begun, leave = threading.Event(), threading.Event()
    encode = searcher.engine.encode_read

    def slow(*arguments: Any) -> Any:
        begun.set()
        leave.wait(120)
        return encode(*arguments)

    async def cancel() -> None:
        task = asyncio.create_task(searcher.aquery(pictures[0], TEXT))
        await asyncio.to_thread(begun.wait, 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        leave.set()
        assert await searcher.aquery(pictures[0], TEXT) == expected

    monkeypatch.setattr(searcher.engine, "encode_read", slow)
    asyncio.run(cancel())
    assert searcher.query(pictures[0], TEXT) == expected


def test_a_prepared_image_is_the_image(searcher: Searcher, engine: Engine, pictures: list[Path]) -> None:
    prepared = engine.prepare_image(pictures[3])
    told = searcher.query(prepared, "is red", 5, exclude_reference=True)
    assert told == searcher.query(pictures[3], "is red", 5, exclude_reference=True)
    assert np.array_equal(engine.encode_images([prepared]), engine.encode_images([pictures[3]]))
    other = PreparedImage(prepared.array, object())
    with pytest.raises(ImageError, match="another bundle"):
        searcher.query(other, "is red")
