"""Images on disk, in every kind of source."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_source


def picture(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "png")
    return stream.getvalue()


def folder_of(path: Path, count: int) -> Path:
    """Images 0.png, sub/1.png, 2.png, ..."""
    (path / "sub").mkdir(parents=True)
    for number in range(count):
        (path / ("sub" if number % 2 else "") / f"{number}.png").write_bytes(png(number))
    return path


def shard_of(path: Path, count: int) -> Path:
    """A WebDataset shard: 0000.png, 0000.json, 0000.txt, ..."""
    with tarfile.open(path, "w") as archive:
        for number in range(count):
            for suffix, data in (
                ("png", png(number)),
                ("json", json.dumps({"number": number}).encode()),
                ("txt", f"caption {number}\n".encode()),
            ):
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def assert_rows_are_those_of(gallery: Gallery, engine: Engine, images: dict[str, bytes]) -> None:
    """The gallery holds exactly these images, each with the row that the engine makes of it."""
    snapshot = gallery.snapshot()
    assert sorted(gallery.ids) == sorted(images)
    expected = engine.encode_images(list(images.values()))
    for (name, _), row in zip(images.items(), expected, strict=True):
        at = snapshot.row(name)
        assert at is not None
        atol = 5e-3 if gallery.dtype == "int8" else 1e-3
        np.testing.assert_allclose(snapshot.vector(at), row, atol=atol, err_msg=name)


def images_of(count: int) -> dict[str, bytes]:
    return {("sub/" if number % 2 else "") + f"{number}.png": png(number) for number in range(count)}


def indexed(tmp_path: Path, engine: Engine, count: int = 12) -> Gallery:
    folder = folder_of(tmp_path / "f", count)
    with Gallery.create(tmp_path / "g", engine) as gallery:
        index(gallery, engine, [open_source(str(folder))], workers=0)
        index(gallery, engine, [open_source(str(shard_of(tmp_path / "s.tar", 3)))], workers=0)
    return Gallery.open(tmp_path / "g")
