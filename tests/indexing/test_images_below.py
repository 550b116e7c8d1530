"""The images below a folder, as `cir-index` takes them, for whatever else is done with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cir_bench.latency.workload import draw_workload
from cir_export.samples import image_files
from cir_infer import Engine, Gallery
from cir_infer.bundle import Bundle
from cir_infer.errors import UsageError
from cir_infer.indexing.formats import image_endings
from cir_infer.indexing.items import Survey
from cir_infer.indexing.walking import Found, images_below, walk
from tests.bundles import write_tiny_bundle

DEPTH = 1500
"""More than Python's functions may call each other; with names of one letter the system has paths for it."""


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The innermost folder. Taken apart step by step, which `shutil.rmtree` cannot."""
    monkeypatch.chdir(tmp_path)
    for _ in range(DEPTH):
        os.mkdir("d")  # noqa: PTH102
        os.chdir("d")
    yield tmp_path.joinpath(*["d"] * DEPTH)
    for file in os.listdir():  # noqa: PTH208
        os.unlink(file)  # noqa: PTH108
    for _ in range(DEPTH):
        os.chdir("..")
        os.rmdir("d")  # noqa: PTH106


def test_images_of_a_folder_deeper_than_calls_may_be(tmp_path: Path, deep: Path) -> None:
    """`--calibrate` ended in a RecursionError."""
    for path in (deep / "a.png", tmp_path / "B.PNG", tmp_path / "c.txt"):
        path.touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert images_below(tmp_path) == [tmp_path / "B.PNG", deep / "a.png"]


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """What lies in a folder of photographs: of many kinds, without an ending, hidden, and what is none."""
    album = tmp_path / "album"
    album.mkdir()
    picture = Image.new("RGB", (8, 6), "red")
    for name, kind in (("a.avif", "AVIF"), ("b.JFIF", "JPEG"), ("c.jp2", "JPEG2000"), ("d", "PNG")):
        picture.save(album / name, kind)
    for name in ("._a.jpg", "e.txt", "f.cr2"):
        (album / name).write_bytes(b"none")
    (album / "g.png").symlink_to("nowhere")
    return album


def test_an_export_and_a_measurement_take_what_is_indexed(album: Path) -> None:
    """Three lists of endings said what an image is: a folder that was indexed was none to calibrate with."""
    survey = Survey()
    indexed = [
        Path(found.path) for found in walk(str(album), image_endings(), survey) if isinstance(found, Found)
    ]
    assert [path.name for path in indexed] == ["a.avif", "b.JFIF", "c.jp2", "d"]
    assert image_files(album, {"kind": "pixels"}) == indexed
    bundle = write_tiny_bundle(album.parent / "tiny.cir")
    with Engine(bundle, device="cpu", threads=1) as engine:
        gallery = Gallery.create(album.parent / "tiny.gallery", engine)
        gallery.add(indexed, ids=[path.name for path in indexed])
    with gallery:
        workload = draw_workload(Bundle(bundle), gallery.snapshot(), album)
    assert workload.images == indexed
    assert workload.source.startswith("images of a folder, 8 x 6")


def test_photographs_of_phones_are_measured_with(tmp_path: Path) -> None:
    """Their sizes were asked of Pillow, which does not know them."""
    heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    photograph = tmp_path / "photographs" / "a.HEIC"
    photograph.parent.mkdir()
    heif.from_pillow(Image.new("RGB", (64, 48), "red")).save(photograph)
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    with (
        Engine(bundle, device="cpu", threads=1) as engine,
        Gallery.create(tmp_path / "tiny.gallery", engine) as gallery,
    ):
        gallery.add([photograph], ids=["a"])
        for folder in (None, photograph.parent):
            workload = draw_workload(Bundle(bundle), gallery.snapshot(), folder)
            assert [str(image) for image in workload.images] == [str(photograph)]
            assert ", 64 x 48, " in workload.source


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    for name in ("a.cr2", "b.cr2", ".c.png", "d.zip"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError) as refused:
        image_files(tmp_path, {"kind": "pixels"})
    told = "2 .cr2 (raw; develop them to JPEG), 1 .zip (unpack it), 1 hidden"
    assert str(refused.value) == f"{tmp_path} holds no image; left out: {told}"
    with pytest.raises(UsageError, match=r"holds no \.npy file; left out: 2 \.cr2"):
        image_files(tmp_path, {"kind": "features"})
