"""What could not be read is neither remembered as broken nor taken for gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cir_infer.commands.index import main
from cir_infer.engine import Engine
from cir_infer.errors import DeviceError
from cir_infer.gallery import Gallery
from cir_infer.indexing.decoding import Decoders
from cir_infer.indexing.items import Item
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_source
from cir_infer.indexing.watching import News
from cir_infer.inputs import locations
from cir_infer.inputs.locations import Location
from tests import bundles
from tests.indexing.support import folder_of, png


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(bundles.write_tiny_bundle(tmp_path / "tiny.cir"))


@contextmanager
def unreadable(monkeypatch: pytest.MonkeyPatch, name: str, reason: int) -> Iterator[None]:
    """A file that is there, and whose disk, drive or owner does not give it."""
    real = locations.opened

    def opened(path: Any) -> Any:
        if Path(path).name == name:
            raise OSError(reason, os.strerror(reason), path)
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(locations, "opened", opened)
        yield


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM])
def test_what_can_be_read_again_is_indexed_though_it_has_not_changed(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """Rights do not change a file's time: --watch passed over such a photo until it was started anew."""
    folder = folder_of(tmp_path / "f", 3)
    (folder / "bad.png").write_bytes(b"no image")
    news = News()
    with Gallery.create(tmp_path / "g", engine) as gallery:

        def told() -> tuple[list[str], int]:
            report = index(
                gallery, engine, [open_source(str(folder))], workers=0, known_broken=news.known_broken
            )
            news.take(report)
            return sorted(broken.id for broken in report.broken), len(gallery)

        with unreadable(monkeypatch, "2.png", reason):
            assert told() == (["2.png", "bad.png"], 2)
            assert told() == ([], 2), "each is told once"
            assert sorted(broken.id for broken in news.broken) == ["2.png", "bad.png"]
        assert told() == ([], 3) and [broken.id for broken in news.broken] == ["bad.png"]
        assert len(news.known_broken) == 1, "a damaged image is not tried again"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_decoder_says_whether_a_fault_lasts(tmp_path: Path, engine: Engine, workers: int) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "good.png").write_bytes(png(1))
    names = ("bad.png", "away.png", "good.png")
    items = [Item(name, Location(str(tmp_path / name)), "") for name in names]
    with Decoders(engine.manifest, workers) as decoders:
        (batch,) = decoders.batches(items, 8)
    assert [item.id for item in batch.items] == ["good.png"]
    assert {item.id: fault.lasting for item, fault in batch.failed} == {"bad.png": True, "away.png": False}


def test_a_decoder_that_nothing_can_watch_is_refused(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody watches may hang for ever; it was told as a fault of the program."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    (tmp_path / "good.png").write_bytes(png(1))
    item = Item("good.png", Location(str(tmp_path / "good.png")), "")
    with Decoders(engine.manifest, 1) as decoders:
        with monkeypatch.context() as patched:
            patched.setattr("threading.Thread.start", fail)
            with pytest.raises(DeviceError, match="limit of processes"):
                list(decoders.batches([item], 8))
        (batch,) = decoders.batches([item], 8)
        assert [found.id for found in batch.items] == ["good.png"]


def test_what_is_there_and_cannot_be_read_is_not_dropped(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    better = tmp_path / "better.cir"
    members = bundles.members_of("artemis") | {"image.onnx": bundles.image_graph(seed=5)}
    bundles.write_bundle(better, bundles.manifest_of("artemis"), members)
    folder = folder_of(tmp_path / "f", 12)
    with Gallery.create(tmp_path / "g", engine) as gallery:
        index(gallery, engine, [open_source(str(folder))], workers=0)
    arguments = [
        str(better),
        "--gallery",
        str(tmp_path / "g"),
        "--reencode",
        "--drop-broken",
        "--workers",
        "0",
    ]
    with unreadable(monkeypatch, "4.png", errno.EIO):
        assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "1 of 12 items are there and cannot be read now" in said and "4.png" in said
    with Gallery.open(tmp_path / "g", engine) as gallery:
        assert len(gallery) == 12
    with unreadable(monkeypatch, "4.png", errno.EIO):
        assert main([*arguments, "--prune-limit", "1"]) == 0
    with Gallery.open(tmp_path / "g") as gallery:
        assert len(gallery) == 11 and gallery.verify().ok
