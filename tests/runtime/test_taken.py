"""Images of an iterator that shows each in the place of the last are those that it showed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from cir_infer import Engine, Gallery, Searcher
from cir_infer.errors import ImageError
from tests.runtime.pictures import encoded, picture

FRAMES = [picture(30, 20, seed=seed) for seed in range(9)]
ARRAYS = [np.asarray(frame) for frame in FRAMES]


def film(kind: str) -> Any:
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    first, *others = map(Image.Image.copy, FRAMES)  # Pillow keeps options of a format on what it saved
    first.save(stream, kind, save_all=True, append_images=others, **options)
    return ImageSequence.Iterator(Image.open(io.BytesIO(stream.getvalue())))


def one_array() -> Iterator[np.ndarray]:
    buffer = np.empty_like(ARRAYS[0])
    for array in ARRAYS:
        buffer[:] = array
        yield buffer


def one_canvas() -> Iterator[Image.Image]:
    canvas = Image.new("RGB", FRAMES[0].size)
    for frame in FRAMES:
        canvas.paste(frame)
        yield canvas


def one_buffer() -> Iterator[bytearray]:
    buffer = bytearray()
    for frame in FRAMES:
        buffer[:] = encoded(frame, "PNG")
        yield buffer


def one_view() -> Iterator[memoryview]:
    return map(memoryview, one_buffer())


def closed_behind() -> Iterator[Image.Image]:
    for frame in FRAMES:
        with Image.open(io.BytesIO(encoded(frame, "PNG"))) as image:
            yield image
        image.close()


def files_closed_behind() -> Iterator[io.BytesIO]:
    for frame in FRAMES:
        with io.BytesIO(encoded(frame, "PNG")) as file:
            yield file


SHOWN: dict[str, Callable[[], Any]] = {
    "TIFF": lambda: film("TIFF"),
    "WEBP": lambda: film("WEBP"),
    "PNG": lambda: film("PNG"),
    **{made.__name__: made for made in (one_array, one_canvas, one_buffer, one_view)},
    **{made.__name__: made for made in (closed_behind, files_closed_behind)},
}


@pytest.mark.parametrize("name", SHOWN)
def test_each_is_encoded_as_it_was_shown(name: str, engine: Engine) -> None:
    expected = np.concatenate([engine.encode_images([array]) for array in ARRAYS])
    found = engine.encode_images(SHOWN[name](), batch_size=4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_frames_of_a_gif_are_those_of_pillow(engine: Engine) -> None:
    """Its colours are not those of the pictures that it was made of."""
    expected = [engine.encode_images([frame.copy()]) for frame in film("GIF")]
    np.testing.assert_allclose(engine.encode_images(film("GIF"), 4), np.concatenate(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["TIFF", "one_array", "closed_behind", "files_closed_behind"])
def test_queries_are_asked_with_what_was_shown(name: str, engine: Engine, gallery_path: Path) -> None:
    searcher = Searcher(engine, gallery_path)
    texts = ["is red"] * len(ARRAYS)
    expected = [hits.scores for hits in searcher.query_batch(ARRAYS, texts)]
    found = [hits.scores for hits in searcher.query_batch(SHOWN[name](), texts, batch_size=4)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_captions_that_came_in_one_list_are_each_its_own(engine: Engine, gallery_path: Path) -> None:
    searcher = Searcher(engine, gallery_path)
    texts = ["is red", "longer blue", "more green", "a square"]

    def captions() -> Iterator[list[str]]:
        held = [""]
        for held[0] in texts:
            yield held

    expected = [hits.scores for hits in searcher.query_batch(ARRAYS[:4], texts)]
    found = [hits.scores for hits in searcher.query_batch(iter(ARRAYS[:4]), captions())]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["TIFF", "one_array", "one_canvas", "files_closed_behind"])
def test_what_was_shown_is_added(name: str, engine: Engine, tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", engine=engine, dtype="float32") as gallery:
        gallery.add(images=SHOWN[name](), ids=[str(number) for number in range(len(ARRAYS))])
        snapshot = gallery.snapshot()
        rows = [snapshot.vector(number) for number in range(len(ARRAYS))]
    np.testing.assert_allclose(rows, engine.encode_images(ARRAYS), atol=1e-6)


def test_what_cannot_be_read_is_said_where_it_comes(engine: Engine) -> None:
    damaged = bytearray(encoded(FRAMES[0], "PNG"))
    damaged[len(damaged) // 2] ^= 1

    def reading() -> Iterator[Image.Image]:
        yield FRAMES[0]
        yield Image.open(io.BytesIO(damaged))
        yield FRAMES[1].convert("I")
        yield FRAMES[2]

    found = engine.encode_images(reading(), errors="return")
    assert {at: type(error) for at, error in found.failed.items()} == {1: ImageError, 2: ImageError}
    np.testing.assert_allclose(found.rows[[0, 3]], engine.encode_images([FRAMES[0], FRAMES[2]]), atol=1e-6)
