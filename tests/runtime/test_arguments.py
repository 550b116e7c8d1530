"""Arguments of the public calls: what fits is taken, whatever else is refused before anything is done."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cir_infer import Engine, Gallery, Hit, Searcher
from cir_infer.errors import CirError, GalleryError, ImageError, TextError, UsageError
from cir_infer.hits import Hits
from cir_infer.inputs.arguments import (
    checked_count,
    checked_flag,
    checked_list,
    checked_number,
    checked_word,
    plain_path,
    plain_text,
)
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.cpu import Int8Scorer
from cir_infer.shards import ShardedGallery

TEXT = "is red"


# ---- the checks themselves


def test_paths_and_texts_of_any_kind_are_what_they_hold() -> None:
    class Folder(str, Enum):
        HERE = "/here"

    class Place:
        def __fspath__(self) -> bytes:
            return b"/here"

    paths: list[Any] = ["/here", Path("/here"), np.str_("/here"), Folder.HERE, Place()]
    for path in paths:
        assert (type(plain_path(path)), plain_path(path)) == (str, "/here")
    assert type(plain_text(Folder.HERE)) is str


def test_every_door_takes_paths_that_are_text_enums(
    bundle: Path, gallery_path: Path, pictures: list[Path]
) -> None:
    kinds: Any = Enum("kinds", {"B": str(bundle), "G": str(gallery_path), "P": str(pictures[0])}, type=str)
    gone: Any = Enum("gone", {"X": "/nowhere/x.jpg"}, type=str)
    wish: Any = Enum("wish", {"T": TEXT}, type=str)
    with Searcher(Engine(kinds.B), kinds.G) as searcher:
        plain = searcher.query(pictures[0], TEXT)
        assert searcher.query(kinds.P, wish.T) == plain
        assert [h.unknown_words for h in searcher.query_batch([kinds.P], [wish.T])] == [plain.unknown_words]
        assert searcher.query(kinds.P, TEXT).reference_id == plain.reference_id
        with pytest.raises(ImageError, match=r"^/nowhere/x\.jpg does not exist"):
            searcher.query(gone.X, TEXT)


@pytest.mark.parametrize("value", [1, 7, np.int64(7), np.uint8(7), np.array(7)])
def test_whole_numbers_of_every_kind(value: Any) -> None:
    number = checked_number("k", value)
    assert type(number) is int and number == int(value)


def test_huge_numbers_overflow_nowhere(searcher: Searcher, pictures: list[Path]) -> None:
    assert checked_count("k", 10**30) == 2**31 - 1 and checked_count("k", 2) == 2
    assert len(searcher.query(pictures[0], TEXT, k=10**30)) == len(pictures)
    assert searcher.engine.encode_images(pictures[:2], 10**30).shape[0] == 2
    assert len(list(searcher.query_batch(pictures[:2], [TEXT] * 2, k=2**63, batch_size=2**64))) == 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**31, "2147483648"),
        (2**63, "9223372036854775808"),
        (np.uint64(2**63), "9223372036854775808"),
        (10**5000, "a whole number of 16,610 bits"),
    ],
    ids=["32 bits", "64 bits", "unsigned", "16,610 bits"],
)
def test_a_number_that_is_too_large_is_told_as_it_was_given(
    bundle: Path, engine: Engine, tmp_path: Path, value: Any, said: str
) -> None:
    assert checked_number("dimension", value) == int(value)
    rows = Rows.of(np.ones((2, 4), np.float32))
    with Gallery.create(tmp_path / "there", dimension=2) as gallery:
        calls: list[Callable[[], object]] = [
            lambda: Gallery.create(tmp_path / "g", dimension=value),
            lambda: Gallery.create(tmp_path / "g", engine, dimension=value),
            lambda: Gallery.create(tmp_path / "g", dimension=4, tokens_per_item=value),
            lambda: Engine(bundle, device="cpu", threads=value),
            lambda: make_scorer(rows, "cpu", threads=value),
            lambda: Int8Scorer(rows, first_list=-int(value)),
            lambda: ShardedGallery.split(gallery, tmp_path / "s", into=value),
            lambda: Hits([]).explain(value),
        ]
        for call in calls:
            with pytest.raises(UsageError) as error:
                call()
            assert said in str(error.value) and len(str(error.value)) < 200
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    "value", [0, -1, True, False, np.True_, 1.0, np.float32(2), "3", None, [1], np.array([1, 2]), 1j]
)
def test_what_is_no_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^k is .*whole number of at least 1"):
        checked_number("k", value)


def test_flags_and_words() -> None:
    assert checked_flag("x", np.True_) is True and checked_flag("x", False) is False
    for value in (1, 0, None, "true", np.int64(1)):
        with pytest.raises(UsageError, match="True or False"):
            checked_flag("x", value)
    assert checked_word("errors", np.str_("raise"), ("raise", "return")) == "raise"
    for value in ("Raise", None, 1, ["raise"]):
        with pytest.raises(UsageError, match="raise, return"):
            checked_word("errors", value, ("raise", "return"))


@pytest.mark.parametrize("value", [[], (), iter(()), {"a"}, np.zeros((2, 3)), range(3)])
def test_several_things(value: Any) -> None:
    assert checked_list("texts", value, "text") is value


@pytest.mark.parametrize(
    "value", ["a", b"a", Path("a"), io.BytesIO(), Image.new("L", (1, 1)), {"a": 1}, 5, None]
)
def test_one_thing_is_not_several(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^texts is .*expected a list of texts"):
        checked_list("texts", value, "text")


# ---- images


def jpeg(path: Path) -> bytes:
    stream = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def test_open_files_are_images(searcher: Searcher, pictures: list[Path], tmp_path: Path) -> None:
    expected = searcher.query(pictures[0], TEXT)
    data = pictures[0].read_bytes()
    buffer = io.BytesIO(data)
    for place in (0, 17, len(data)):
        buffer.seek(place)
        assert searcher.query(buffer, TEXT) == expected
        assert buffer.tell() == place, "the file stands where it stood"
    with pictures[0].open("rb") as file:
        assert searcher.query(file, TEXT) == expected
        assert searcher.query(file, TEXT) == expected
    with pictures[0].open("rb", buffering=0) as file:
        assert searcher.query(file, TEXT) == expected
    gaps = memoryview(bytes(byte for pair in zip(data, data, strict=True) for byte in pair))[::2]
    for kind in (bytearray(data), memoryview(data), gaps, str(pictures[0]), pathlib.PurePath(pictures[0])):
        assert searcher.query(kind, TEXT) == expected  # type: ignore[arg-type]


def test_a_stream_that_cannot_go_back_is_read_to_its_end(searcher: Searcher, pictures: list[Path]) -> None:
    class Stream(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.rest = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.rest.readinto(buffer)

    response = io.BufferedReader(Stream(pictures[0].read_bytes()))
    assert searcher.query(response, TEXT) == searcher.query(pictures[0], TEXT)


def test_one_buffer_several_times_among_threads(engine: Engine, pictures: list[Path]) -> None:
    buffer = io.BytesIO(pictures[0].read_bytes())
    rows = engine.encode_images([buffer] * 20, 7)
    np.testing.assert_array_equal(rows, np.repeat(engine.encode_images(pictures[:1]), 20, axis=0))


def test_a_generator_may_fill_the_same_buffer_again(engine: Engine, pictures: list[Path]) -> None:
    buffer = io.BytesIO()

    def frames() -> Any:
        for path in pictures[:6]:
            buffer.seek(0)
            buffer.truncate()
            buffer.write(path.read_bytes())
            yield buffer

    np.testing.assert_allclose(
        engine.encode_images(frames(), 4), engine.encode_images(pictures[:6]), atol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: _closed(path.open("rb")), "is closed"),
        (lambda path: io.StringIO("x"), 'mode "rb"'),
        (lambda path: path.open("r", encoding="latin-1"), 'mode "rb"'),
        (lambda path: path.with_name("new.bin").open("wb"), "open it for reading"),
        (lambda path: io.BytesIO(), "not an image"),
        (lambda path: io.BytesIO(b"abc"), "not an image"),
        (lambda path: _Odd(), "where bytes were expected"),
    ],
)
def test_files_that_are_no_images(
    searcher: Searcher, pictures: list[Path], tmp_path: Path, make: Callable[[Path], Any], told: str
) -> None:
    copy = tmp_path / "picture.png"
    copy.write_bytes(pictures[0].read_bytes())
    with pytest.raises(ImageError, match=told):
        searcher.query(make(copy), TEXT)


def _closed(file: Any) -> Any:
    file.close()
    return file


class _Odd:
    def read(self, size: int) -> object:
        return object()


@pytest.mark.parametrize("image", [5, object(), ["a.jpg"], {"path": "a.jpg"}, ("a.jpg",), 1.5, True, Image])
def test_what_is_no_image(searcher: Searcher, image: Any) -> None:
    with pytest.raises(ImageError):
        searcher.query(image, TEXT)


# ---- queries


def test_numpy_numbers_and_generators_in_queries(searcher: Searcher, pictures: list[Path]) -> None:
    assert len(searcher.query(pictures[0], TEXT, k=np.int64(3))) == 3
    answers = searcher.query_batch(
        (path for path in pictures[:5]), (TEXT for _ in range(5)), k=np.uint8(2), batch_size=np.int32(2)
    )
    assert [len(hits) for hits in answers] == [2] * 5
    assert len(searcher.query(pictures[0], np.str_(TEXT))) == 10


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "2"])
def test_senseless_batch_sizes_of_queries(searcher: Searcher, pictures: list[Path], size: Any) -> None:
    with pytest.raises(UsageError, match="batch_size is"):
        searcher.query_batch(pictures[:1], [TEXT], batch_size=size)


@pytest.mark.parametrize(
    ("images", "texts", "told"),
    [
        ("a.jpg", [TEXT], "list of images"),
        (io.BytesIO(), [TEXT], "list of images"),
        (Image.new("RGB", (2, 2)), [TEXT], "list of images"),
        (Hit("a"), [TEXT], "images is"),
        (None, [TEXT], "list of images"),
        (["a.jpg"], TEXT, "list of texts"),
        (["a.jpg"], None, "list of texts"),
        (["a.jpg"], {"a": 1}, "list of texts"),
        (["a.jpg"], [], "1 images and 0 texts; as many images as texts"),
        (["a.jpg"], [TEXT, TEXT], "as many images as texts"),
    ],
)
def test_one_thing_for_many_in_a_batch(searcher: Searcher, images: Any, texts: Any, told: str) -> None:
    """Refused when the call is made, not when its first answer is asked for."""
    with pytest.raises(UsageError, match=told):
        searcher.query_batch(images, texts)


def test_generators_of_different_lengths(searcher: Searcher, pictures: list[Path]) -> None:
    answers = searcher.query_batch(iter(pictures[:3]), iter([TEXT, TEXT]))
    with pytest.raises(UsageError, match="ends after 2"):
        list(answers)


def test_an_error_of_the_callers_generator_is_the_callers(searcher: Searcher, pictures: list[Path]) -> None:
    def images() -> Any:
        yield pictures[0]
        raise ValueError("zipped")

    with pytest.raises(ValueError, match="zipped"):
        list(searcher.query_batch(images(), iter([TEXT] * 3)))


@pytest.mark.parametrize("exclude", ["sku-1", 5, Hit("sku-1"), [5], [None], [Hit("a")], 1.5, True])
def test_what_cannot_be_excluded(searcher: Searcher, pictures: list[Path], exclude: Any) -> None:
    with pytest.raises(UsageError, match="exclude"):
        searcher.query(pictures[0], TEXT, exclude=exclude)


def test_thousands_of_ids_are_excluded_at_once(searcher: Searcher, pictures: list[Path]) -> None:
    every = searcher.query(pictures[0], TEXT, k=40)
    many = [f"other-{number}" for number in range(20_000)]
    rest = searcher.query(pictures[0], TEXT, k=40, exclude=(id for id in (*many, *every.ids[:7], *many)))
    assert rest.ids == every.ids[7:]
    nothing = searcher.query(pictures[0], TEXT, k=40, exclude=every.ids)
    assert len(nothing) == 0


@pytest.mark.parametrize("where", [5, 1.5, [1], object(), b"a = 1", True])
def test_what_is_no_filter(searcher: Searcher, pictures: list[Path], where: Any) -> None:
    with pytest.raises(UsageError):
        searcher.query(pictures[0], TEXT, where=where)


@pytest.mark.parametrize("text", [5, b"is red", ["is red", 5], [["is red"]], {"a": 1}, object(), True])
def test_what_is_no_text(searcher: Searcher, pictures: list[Path], text: Any) -> None:
    with pytest.raises(TextError):
        searcher.query(pictures[0], text)


def test_a_third_caption(searcher: Searcher, pictures: list[Path]) -> None:
    with pytest.raises(TextError, match="3 captions"):
        searcher.query(pictures[0], ["is red", "is blue", "is longer"])


def test_half_a_letter_is_in_no_gallery(searcher: Searcher, pictures: list[Path]) -> None:
    assert "\ud800" not in searcher.gallery
    every = searcher.query(pictures[0], TEXT)
    assert searcher.query(pictures[0], TEXT, exclude=["\ud800", "\udce9.jpg"]) == every


@pytest.mark.parametrize("id", [5, None, b"sku-1", ["sku-1"], "sku-none", "\ud800"])
def test_what_is_no_id(searcher: Searcher, id: Any) -> None:
    with pytest.raises(GalleryError, match="no item"):
        searcher.item(id)
    with pytest.raises(GalleryError, match="no item"):
        searcher.query(Hit(id), TEXT)


def test_prepared_batches_are_looked_at(engine: Engine) -> None:
    for batch in (None, "a", np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)):
        with pytest.raises(UsageError, match=r"expected uint8 \(n, 8, 8, 3\)"):
            engine.encode_prepared(batch)  # type: ignore[arg-type]


def test_what_is_opened_is_looked_at(engine: Engine, bundle: Path, gallery_path: Path) -> None:
    for make in (
        lambda: Engine(5),  # type: ignore[arg-type]
        lambda: Engine(bundle, device=5),  # type: ignore[arg-type]
        lambda: Engine(bundle, device="cpu", exif_orientation="yes"),  # type: ignore[arg-type]
        lambda: Searcher(engine, 5),  # type: ignore[arg-type]
        lambda: Searcher(engine, gallery_path, scorer=5),  # type: ignore[arg-type]
        lambda: Searcher(engine, gallery_path, threads=2),
        lambda: Searcher(engine, gallery_path, exif_orientation=True),
    ):
        with pytest.raises(UsageError):
            make()


ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
)
ANYTHING |= st.lists(ANYTHING, max_size=3) | st.dictionaries(st.text(max_size=5), ANYTHING, max_size=2)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(values=st.lists(ANYTHING, min_size=7, max_size=7), good=st.sets(st.integers(0, 6)))
def test_any_arguments_are_an_answer_or_a_typed_error(
    searcher: Searcher, pictures: list[Path], values: list[Any], good: set[int]
) -> None:
    fitting: list[Any] = [pictures[0], TEXT, 3, {"colour": "red"}, ["sku-1"], 2, False]
    image, text, k, where, exclude, size, flag = (
        fitting[place] if place in good else value for place, value in enumerate(values)
    )
    calls: list[Callable[[], object]] = [
        lambda: searcher.query(image, text, k, where, exclude, flag),
        lambda: list(searcher.query_batch([image], [text], k, where, exclude, size, flag)),
        lambda: list(searcher.query_batch(image, text, k, where, exclude, size, flag)),
        lambda: searcher.item(image),
        lambda: searcher.engine.encode_images(image, size, flag),
        lambda: searcher.engine.encode_images([image, pictures[0]], size, errors="return"),
        lambda: searcher.engine.encode_texts(text, size, flag),
        lambda: searcher.engine.encode_texts([text, TEXT], size),
        lambda: searcher.engine.prepare(image),
    ]
    for call in calls:
        try:
            call()
        except CirError as error:
            assert 0 < len(str(error)) < 1500
