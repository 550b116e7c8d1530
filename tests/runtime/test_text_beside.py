"""A text is encoded beside its picture, from when that is open; for one that cannot be read not at all."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from cir_infer import Engine, Searcher
from cir_infer.errors import ImageError
from cir_infer.processes.pending import Pending
from cir_infer.processes.threads import Threads

TEXT = "is red"


def encoded(path: Path) -> bytes:
    return path.read_bytes()


def array(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    "form",
    [Path, encoded, Image.open, array, lambda path: io.BytesIO(path.read_bytes())],
    ids=["a path", "bytes", "a picture of Pillow's", "an array", "an open file"],
)
def test_texts_begin_once_the_picture_is_open(
    engine: Engine, searcher: Searcher, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    expected = searcher.query(engine.prepare_image(pictures[0]), TEXT)
    seen: list[str] = []
    begun, begin = threading.Event(), Pending.begin

    def beginning(self: Pending[Any]) -> None:
        seen.append("text begins")
        begin(self)
        begun.set()

    prepare, load = Engine.prepare, ImageFile.ImageFile.load

    def preparing(self: Engine, *args: Any) -> Any:
        seen.append("picture")
        return prepare(self, *args)

    def loading(self: ImageFile.ImageFile) -> Any:
        if not isinstance(given, Image.Image):  # which was decoded before its size is asked
            assert begun.is_set()
        return load(self)

    given = form(pictures[0])
    monkeypatch.setattr(Pending, "begin", beginning)
    monkeypatch.setattr(Engine, "prepare", preparing)
    monkeypatch.setattr(ImageFile.ImageFile, "load", loading)
    answer = searcher.query(given, TEXT)
    assert [hit.as_dict() for hit in answer] == [hit.as_dict() for hit in expected]
    assert seen[:2] == ["picture", "text begins"]


def test_a_picture_that_cannot_be_read_costs_no_text(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encoding(*_: Any) -> None:
        raise AssertionError("the text is encoded")

    monkeypatch.setattr(Engine, "encode_read", encoding)
    with pytest.raises(ImageError):
        searcher.query(b"no picture", TEXT)


def test_what_is_pending_is_done_once_wherever_it_is_wanted() -> None:
    done: list[int] = []

    def work() -> int:
        done.append(threading.get_ident())
        return len(done)

    threads = Threads(1)
    beside = Pending(work, lambda: threads)
    beside.begin()
    beside.begin()
    assert beside.result() == 1
    assert done[0] != threading.get_ident()
    assert Pending(work, lambda: threads).result() == 2
    alone = Pending(work)
    alone.begin()
    assert len(done) == 2
    assert alone.result() == 3
    assert done[1:] == [threading.get_ident()] * 2
    threads.close()


def test_an_error_of_what_is_pending_is_raised_where_it_is_wanted() -> None:
    def work() -> None:
        raise ValueError("no")

    threads = Threads(1)
    for pending in (Pending(work, lambda: threads), Pending(work)):
        pending.begin()
        with pytest.raises(ValueError, match="no"):
            pending.result()
    threads.close()
