"""Encoding in bulk: the rows of `cir-index`, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from cir_infer import Gallery
from cir_infer.cluster.parts import Part, merged_report
from cir_infer.commands.cluster import main
from cir_infer.commands.index import main as index_main
from cir_infer.indexing.items import file_item
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_sources
from cir_infer.shards import ShardedGallery
from tests.cluster.conftest import processes_below
from tests.indexing.object_store import Store


def contents(galleries: list[Gallery]) -> dict[str, Any]:
    """Ids with all that is known of them."""
    found: dict[str, Any] = {}
    for gallery in galleries:
        snapshot = gallery.snapshot()
        rows = snapshot.live_rows()
        stamps = gallery.stamps_of(snapshot.keys(rows).tolist())
        for row, item, key in zip(rows, snapshot.items(rows), snapshot.keys(rows).tolist(), strict=True):
            assert item.id not in found
            vector = snapshot.vector(int(row)).tobytes()
            found[item.id] = (item.metadata, item.source, stamps[key], vector)
    return found


def contents_of(folder: Path) -> dict[str, Any]:
    with ShardedGallery(folder, read_only=True) as gallery:
        return contents(gallery.shards)


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory, bundle: Path, photos: Path) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("one") / "g"
    assert index_main([str(bundle), str(photos), "--gallery", str(path), "--workers", "0"]) == 1
    with Gallery.open(path, read_only=True) as gallery:
        return contents([gallery])


def test_parts_of_a_source_are_all_of_it(tmp_path: Path, bundle: Path, photos: Path) -> None:
    """Each shard indexed by itself, without Ray: nothing twice, nothing missing, what is broken said once."""
    from cir_infer import Engine

    (tmp_path / "empty").mkdir()
    with Engine(bundle) as engine, Gallery.create(tmp_path / "one", engine) as one:
        sources = [str(photos), str(tmp_path / "empty")]
        whole = index(one, engine, open_sources(sources), workers=0)
        reports, galleries = [], []
        for number in range(3):
            parts = [Part(source, number, 3) for source in open_sources(sources)]
            gallery = Gallery.create(tmp_path / f"{number}", engine)
            report = index(gallery, engine, parts, workers=0)
            for part in parts:
                part.without_emptiness(report)
            reports.append(report)
            galleries.append(gallery)
        report = merged_report(reports)
        assert contents(galleries) == contents([one])
        assert (report.added, report.left_out) == (whole.added, whole.left_out) == (58, whole.left_out)
        assert sorted(b.reason for b in report.broken) == sorted(b.reason for b in whole.broken)
        assert len(whole.broken) == 3
        for gallery in galleries:
            gallery.close()


@pytest.mark.ray
def test_the_rows_are_those_of_one_gallery(
    ray: Any,
    tmp_path: Path,
    bundle: Path,
    photos: Path,
    expected: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "s"
    mine = tmp_path / "photos"
    shutil.copytree(photos, mine)
    command = ["index", str(bundle), str(mine), "--gallery", str(folder), "--shards", "3", "--json"]
    command += ["--address", "local", "--batch-size", "8"]
    assert main(command) == 1
    said = json.loads(capsys.readouterr().out)
    assert (said["items"], said["added"], said["broken"]) == (58, 58, 2)
    assert said["left_out"] == {".me": 1}
    assert len(Path(said["broken_list"]).read_text().splitlines()) == 2
    rows = {item: (about[0], about[2].split("-")[0], about[3]) for item, about in contents_of(folder).items()}
    assert {i: row[2] for i, row in rows.items()} == {i: about[3] for i, about in expected.items()}
    for name in ("a.jpg", "b.jpg", "part0/0.png"):
        (mine / name).unlink()
    assert main([*command, "--prune"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["unchanged"], said["removed"], said["added"], said["encoded"]) == (57, 1, 0, 0)
    with ShardedGallery(folder) as gallery:
        assert gallery.listing.bundle == str(bundle) and "part0/0.png" not in gallery.of("part0/0.png")
    assert main([*command[:-4], "--shards", "5", "--address", "local"]) == 1
    assert "--shards 3 already" in capsys.readouterr().err


@pytest.mark.ray
def test_a_store_is_read_on_every_machine(
    ray: Any, store: Store, tmp_path: Path, bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    expected = {
        f"part{n % 3}/{n} #.png": (photos / f"part{n % 3}" / f"{n}.png").read_bytes() for n in range(9)
    }
    for name, data in expected.items():
        store.put(f"photos/{name}", data)
    folder = tmp_path / "s"
    command = ["index", str(bundle), "s3://shop/photos", "--gallery", str(folder), "--shards", "2", "--json"]
    command += ["--address", "local", "--batch-size", "2"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 9
    found = contents_of(folder)
    assert found.keys() == expected.keys()
    assert {about[1] for about in found.values()} == {f"s3://shop/photos/{quote(name)}" for name in expected}
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["unchanged"], said["encoded"]) == (9, 0)


@pytest.mark.ray
def test_what_dies_is_done_again(
    ray: Any, tmp_path: Path, bundle: Path, photos: Path, expected: dict[str, Any]
) -> None:
    """Writers, encoders and decoders are killed while they work."""
    folder = tmp_path / "s"
    command = ["index", str(bundle), str(photos), "--gallery", str(folder), "--shards", "2"]
    command += ["--address", "local", "--batch-size", "1"]
    ended = threading.Event()
    killed: list[str] = []

    def kill() -> None:
        wanted = ["_Writer", "_Engine", "_Writer", "_prepare"]
        while wanted and not ended.is_set():
            for pid, title in processes_below().items():
                if wanted and title.startswith("ray::") and wanted[0] in title:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    killed.append(wanted.pop(0))
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert main(command) == 1
    finally:
        ended.set()
        killer.join()
    assert killed and contents_of(folder) == expected
    with ShardedGallery(folder, read_only=True) as gallery:
        assert all(shard.verify().ok for shard in gallery.shards)


@pytest.mark.ray
def test_what_cannot_be_encoded_there(
    ray: Any, tmp_path: Path, bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "s"
    ShardedGallery.create(folder, 2, dimension=4, fingerprint="other").close()
    for wrong, code, words in (
        ([str(bundle), str(photos), "--gallery", str(folder)], 1, "use the bundle that encoded them"),
        ([str(bundle), str(tmp_path / "none"), "--gallery", str(folder)], 2, "does not exist"),
        ([str(bundle), str(photos), "--gallery", str(folder), "--prune-limit", "3"], 2, "add it"),
        ([str(bundle), str(photos), "--gallery", str(tmp_path / "t"), "--gpus", "64"], 2, "GPUs"),
    ):
        assert main(["index", *wrong, "--address", "local"]) == code
        assert words in capsys.readouterr().err
    assert sys.modules["ray"].is_initialized()


class Slow:
    """How images are prepared, for ever."""

    @property
    def exif_orientation(self) -> Any:
        time.sleep(3600)


def encoded(ray: Any, photos: Path, spec: Any, patience: float) -> list[Any]:
    """What becomes of two images."""
    from cir_infer.cluster.encoding import Pool, RayEncoder

    class Engine:
        def encode(self, images: Any) -> tuple[Any, float]:
            return images.reshape(len(images), -1).astype("float32"), 0.0

    engine = ray.remote(Engine).options(num_cpus=0).remote()
    try:
        encoder = RayEncoder(Pool([engine], ray.put(spec)), 2, lambda: False, patience)
        items = [file_item(f"{n}", str(photos / "part0" / f"{n}.png")) for n in (0, 3)]
        return list(encoder.batches(items, 2))  # type: ignore[arg-type]
    finally:
        ray.kill(engine)


@pytest.mark.ray
def test_a_decoder_that_hangs_is_ended(ray: Any, photos: Path) -> None:
    parts = encoded(ray, photos, Slow(), 0.2)
    assert [item.id for part in parts for item, _ in part.failed] == ["0", "3"]
    assert all("crashed or hung" in fault.reason for part in parts for _, fault in part.failed)


@pytest.mark.ray
def test_waiting_for_a_processor_is_no_work(ray: Any, tmp_path: Path, photos: Path, bundle: Path) -> None:
    """All processors are taken for much longer than an image is given."""
    from cir_infer.bundle import Bundle

    def take(told: str) -> None:
        Path(told).touch()
        time.sleep(12)

    told = tmp_path / "taken"
    taken = ray.remote(take).options(num_cpus=ray.cluster_resources()["CPU"]).remote(str(told))
    while not told.exists():
        time.sleep(0.05)
    (part,) = encoded(ray, photos, Bundle(bundle).manifest.image, 5.0)
    assert [item.id for item in part.items] == ["0", "3"] and not part.failed
    ray.get(taken)
