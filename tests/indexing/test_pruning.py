"""Removal by absence: a little is believed, much is not, and what cannot be seen is not absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cir_infer.engine import Engine
from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.indexing.pruning import Origin, PruneLimit, unbelievable, under
from cir_infer.indexing.report import Report
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_sources
from cir_infer.inputs.locations import is_gone, link_away
from tests.bundles import write_tiny_bundle
from tests.indexing.support import png, shard_of


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(write_tiny_bundle(tmp_path / "tiny.cir"))


@pytest.fixture
def gallery(tmp_path: Path, engine: Engine) -> Gallery:
    return Gallery.create(tmp_path / "g", engine)


def run(
    gallery: Gallery, engine: Engine, *sources: object, prune: bool = True, limit: str | None = None
) -> Report:
    return index(
        gallery,
        engine,
        open_sources([str(source) for source in sources]),
        workers=0,
        prune=prune,
        prune_limit=PruneLimit.parse(limit) if limit else PruneLimit(),
    )


def flat(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number + 1000 * len(folder.name)))
    return folder


@pytest.mark.parametrize(
    ("gone", "known", "allowed"),
    [
        (1, 1, False),
        (1, 2, True),
        (2, 3, False),
        (2, 4, True),
        (3, 4, False),
        (3, 12, True),
        (6, 12, False),
        (25, 100, True),
        (26, 100, False),
        (1000, 1_000_000, True),
        (1001, 1_000_000, False),
    ],
)
def test_how_much_is_believed(gone: int, known: int, allowed: bool) -> None:
    assert PruneLimit().allows(gone, known) == allowed
    assert PruneLimit.parse(str(gone)).allows(gone, known)
    assert PruneLimit.parse("100%").allows(gone, known)
    assert not PruneLimit.parse(str(gone - 1)).allows(gone, known)
    origins = [Origin(str(n), n, f"/nowhere/{n}.png") for n in range(min(gone, 40))]
    assert (unbelievable("/f", origins, known, PruneLimit(number=0)) is not None) == bool(origins)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "101%", "-1%", "nan%", "%", "1e3"])
def test_what_is_no_limit_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="--prune-limit"):
        PruneLimit.parse(text)


@pytest.mark.parametrize("away", ["empty", "hidden", "other", "links"])
def test_a_drive_that_is_away_costs_nothing(
    tmp_path: Path, engine: Engine, gallery: Gallery, away: str
) -> None:
    folder = flat(tmp_path / "f", 12)
    run(gallery, engine, folder)
    folder.rename(tmp_path / "drive")
    folder.mkdir()
    if away == "hidden":
        (folder / ".Trash").mkdir()
    if away == "other":
        (folder / "README.txt").touch()
        (folder / "new.png").write_bytes(png(99))
    if away == "links":
        for number in range(12):
            (folder / f"{number}.png").symlink_to(tmp_path / "nowhere" / f"{number}.png")
    report = run(gallery, engine, folder)
    assert report.removed == 0 and not report.ok and {f"{n}.png" for n in range(12)} <= set(gallery.ids)
    if away != "links":
        (refused,) = report.refused
        assert refused.gone == 12 and "--prune-limit 12" in refused.reason and "they stay" in refused.reason
        assert report.to_dict()["refused"][0]["gone"] == 12
    shutil.rmtree(folder)
    (tmp_path / "drive").rename(folder)
    assert run(gallery, engine, folder, limit="100%").unchanged == 12


def test_whoever_insists_gets_it(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = flat(tmp_path / "f", 12)
    run(gallery, engine, folder)
    for number in range(11):
        (folder / f"{number}.png").unlink()
    assert len(run(gallery, engine, folder, limit="10").refused) == 1
    assert len(run(gallery, engine, folder, limit="90%").refused) == 1
    report = run(gallery, engine, folder, limit="11")
    assert report.removed == 11 and report.ok and gallery.ids == ["11.png"]


def test_a_few_deleted_photos_are_removed(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = flat(tmp_path / "f", 12)
    run(gallery, engine, folder)
    for number in range(3):
        (folder / f"{number}.png").unlink()
    assert run(gallery, engine, folder, prune=False).removed == 0 and len(gallery) == 12
    assert run(gallery, engine, folder).removed == 3 and len(gallery) == 9


def test_a_mount_inside_a_folder_that_is_away(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = flat(tmp_path / "f", 60)
    flat(folder / "drive", 12)
    run(gallery, engine, folder)
    (folder / "drive").rename(tmp_path / "away")
    (folder / "drive").mkdir()
    (report,) = run(gallery, engine, folder).refused
    assert "drive, which is there and empty" in report.reason and len(gallery) == 72
    (folder / "drive").rmdir()
    assert run(gallery, engine, folder).removed == 12, "a folder that was deleted, and little of the whole"


def test_a_folder_that_became_a_link_is_not_gone(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = flat(tmp_path / "f", 60)
    flat(folder / "2019", 5)
    run(gallery, engine, folder)
    (folder / "2019").rename(tmp_path / "drive")
    (folder / "2019").symlink_to(tmp_path / "drive")
    report = run(gallery, engine, folder)
    assert (report.removed, report.left_out) == (0, {"links to folders": 1}) and len(gallery) == 65
    (tmp_path / "drive").rename(tmp_path / "away")
    report = run(gallery, engine, folder)
    assert (report.removed, report.left_out) == (0, {"links to what is not there": 1}) and len(gallery) == 65


def test_what_cannot_be_listed_is_not_gone(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = flat(tmp_path / "f", 20)
    flat(folder / "x", 2)
    run(gallery, engine, folder)
    shutil.rmtree(folder / "x")
    (folder / "x").symlink_to("x")  # a folder whose listing fails, for root too
    report = run(gallery, engine, folder)
    assert report.removed == 0 and len(gallery) == 22 and len(report.broken) == 1


def test_a_neighbour_of_what_is_broken_is_removed(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = flat(tmp_path / "f", 12)
    (folder / "1").write_bytes(png(50))
    (folder / "1.png.png").write_bytes(png(51))
    run(gallery, engine, folder)
    (folder / "1.png").write_bytes(b"broken")
    (folder / "1.png.png").unlink()
    report = run(gallery, engine, folder)
    assert [entry.id for entry in report.broken] == ["1.png"] and report.removed == 1


def test_a_shard_that_lost_its_members(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    run(gallery, engine, shard_of(tmp_path / "s.tar", 8))
    shard_of(tmp_path / "s.tar", 1)
    report = run(gallery, engine, tmp_path / "s.tar")
    assert report.removed == 0 and report.refused[0].gone == 7 and len(gallery) == 8
    shard_of(tmp_path / "s.tar", 7)
    report = run(gallery, engine, tmp_path / "s.tar")
    assert report.removed == 1 and report.ok and len(gallery) == 7


def test_each_source_is_judged_by_itself(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    large, small = flat(tmp_path / "large", 60), flat(tmp_path / "small", 6)
    run(gallery, engine, f"a={large}", f"b={small}")
    shutil.rmtree(small)
    small.mkdir()
    (large / "0.png").unlink()
    report = run(gallery, engine, f"a={large}", f"b={small}")
    assert report.removed == 1 and [refused.source for refused in report.refused] == [str(small)]


def test_a_copy_elsewhere_is_no_reason_to_remove_much(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    photos, backup = flat(tmp_path / "photos", 12), tmp_path / "backup"
    shutil.copytree(photos, backup)
    for sources in ([f"a={photos}"], [f"a={photos}", f"b={backup}"]):
        run(gallery, engine, *sources)
    photos.rename(tmp_path / "away")
    photos.mkdir()
    report = run(gallery, engine, f"a={photos}", f"b={backup}", f"c={backup}")
    assert report.removed == 0 and report.refused[0].gone == 12 and len(gallery) == 36


def test_gone_is_only_what_nothing_hides(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    assert not is_gone(str(tmp_path / "f" / "a"))
    assert is_gone(str(tmp_path / "f" / "b")) and is_gone(str(tmp_path / "f" / "a" / "b" / "c"))
    assert not is_gone(str(tmp_path / "link")) and not is_gone(str(tmp_path / "link" / "b" / "c"))
    assert not is_gone(str(tmp_path / "loop" / "b")) and not is_gone(str(tmp_path / ("x" * 300)))
    assert link_away(str(tmp_path / "link" / "b")) and not link_away(str(tmp_path / "f" / "b"))


def test_below_is_below() -> None:
    is_under = under(["/a/b", "/c/", "/s.tar#1+2"])
    assert is_under("/a/b") and is_under("/a/b/c/d") and is_under("/c/x") and is_under("/s.tar#1+2")
    assert not is_under("/a/bc") and not is_under("/a") and not is_under("/s.tar#1+23") and not is_under("x")
    assert not under([])(os.sep)
