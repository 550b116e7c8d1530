"""A gallery that is exchanged and removed between two instructions of a call: nothing is called damaged."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from tests.gallery.interrupts import Bomb
from tests.gallery.support import DIM, filled, names, vectors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs names relative to descriptors")

SAID = ("open it again", "found nothing", "not a gallery")
"""What is true of a gallery that was exchanged, or of a place where nothing is for a moment."""

Call = Callable[[Path, Gallery], object]


def opening(path: Path, gallery: Gallery) -> object:
    with Gallery.open(path) as other:
        snapshot = other.snapshot()
        return snapshot.items(snapshot.live_rows())


def reading(path: Path, gallery: Gallery) -> object:
    return gallery.snapshot().items([0])


def verifying(path: Path, gallery: Gallery) -> object:
    assert gallery.verify().problems == []
    return None


def backing_up(path: Path, gallery: Gallery) -> object:
    return gallery.backup(path.with_name("copy"))


def adding(path: Path, gallery: Gallery) -> object:
    return gallery.add_vectors(ids=["new"], vectors=vectors(1))


def compacting(path: Path, gallery: Gallery) -> object:
    return gallery.compact()


STRIDES = {opening: 311, reading: 97, verifying: 3001, backing_up: 3001, adding: 701, compacting: 1501}


def exchanging(call: Call, home: Path, at: int) -> bool:
    """Whether a call got as far as the instruction before which its gallery is exchanged."""
    home.mkdir()
    shop, gone = home / "shop", home / "gone"
    with filled(shop, 4) as made:
        for number in range(3):
            made.add_vectors(ids=names(2, f"more{number}"), vectors=vectors(2))
        made.remove(["i1"])
    Gallery.create(home / "next", dimension=DIM).close()

    def exchange() -> None:
        shop.rename(gone)
        (home / "next").rename(shop)
        shutil.rmtree(gone)

    bomb = Bomb(at, ("/cir_infer/gallery/",), exchange)
    with Gallery.open(shop) as gallery:
        try:
            bomb(lambda: call(shop, gallery))
        except GalleryError as error:
            assert bomb.fired and any(words in str(error) for words in SAID), (
                f"{call.__name__}, {at}: {error}"
            )
    shutil.rmtree(home)
    return bomb.fired


@pytest.mark.parametrize("call", [opening, reading, verifying, backing_up, adding, compacting])
def test_what_was_exchanged_is_not_called_damaged(tmp_path: Path, call: Call, stride: int = 0) -> None:
    stride = stride or STRIDES[call]
    at = 1
    while exchanging(call, tmp_path / "home", at):
        at += stride
    assert at > stride


@pytest.mark.slow
@pytest.mark.parametrize("call", [opening, reading, verifying, backing_up, adding, compacting])
def test_what_was_exchanged_anywhere_is_not_called_damaged(tmp_path: Path, call: Call) -> None:
    test_what_was_exchanged_is_not_called_damaged(tmp_path, call, 5)
