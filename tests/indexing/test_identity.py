"""An image is what it is, by its place and by its content: moved, renamed, named alike, spelled otherwise."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.indexing.items import Stamp, stamp_of
from cir_infer.indexing.pruning import PruneLimit
from cir_infer.indexing.report import Report
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_sources
from tests.bundles import write_tiny_bundle
from tests.indexing.support import assert_rows_are_those_of, folder_of, png, shard_of


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(write_tiny_bundle(tmp_path / "tiny.cir"))


@pytest.fixture(params=["float16", "float32", "int8"])
def gallery(tmp_path: Path, engine: Engine, request: pytest.FixtureRequest) -> Gallery:
    return Gallery.create(tmp_path / "g", engine, request.param)


def run(
    gallery: Gallery,
    engine: Engine,
    *sources: object,
    prune: bool = False,
    replace: bool = False,
    limit: PruneLimit = PruneLimit(),
) -> Report:
    return index(
        gallery,
        engine,
        open_sources([str(source) for source in sources]),
        workers=0,
        prune=prune,
        prune_limit=limit,
        replace_taken=replace,
    )


def sources_of(gallery: Gallery) -> dict[str, str | None]:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    return dict(zip(snapshot.ids(rows), snapshot.sources(rows), strict=True))


def images_of(count: int, prefix: str = "") -> dict[str, bytes]:
    return {prefix + ("sub/" if n % 2 else "") + f"{n}.png": png(n) for n in range(count)}


def test_a_library_that_was_moved_is_followed(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    run(gallery, engine, folder_of(tmp_path / "old", 8))
    before = gallery.snapshot().rows.take(gallery.snapshot().live_rows())
    (tmp_path / "old").rename(tmp_path / "new")
    report = run(gallery, engine, tmp_path / "new", prune=True)
    assert (report.moved, report.encoded, report.removed, report.ok) == (8, 0, 0, True)
    assert sources_of(gallery) == {name: f"{tmp_path}/new/{name}" for name in images_of(8)}
    snapshot = gallery.snapshot()
    assert (snapshot.rows.take(snapshot.live_rows()) == before).all(), "rows are taken over as they are"
    assert run(gallery, engine, tmp_path / "new", prune=True).unchanged == 8
    assert gallery.verify().ok


def test_what_is_missing_from_a_library_that_became_a_link_is_pruned(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    run(gallery, engine, folder_of(tmp_path / "lib", 8))
    (tmp_path / "lib").rename(tmp_path / "disk")
    (tmp_path / "lib").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "0.png").unlink()
    report = run(gallery, engine, tmp_path / "lib", prune=True)
    assert (report.moved, report.encoded, report.removed, report.ok) == (7, 0, 1, True)


@pytest.mark.parametrize("deeper", ["", "photos/2023/"])
def test_what_is_missing_from_a_moved_library_is_pruned(
    tmp_path: Path, engine: Engine, gallery: Gallery, deeper: str
) -> None:
    folder_of(tmp_path / "old" / deeper, 8)
    run(gallery, engine, tmp_path / "old" / deeper)
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / deeper / "sub" / "3.png").unlink()
    report = run(gallery, engine, tmp_path / "new" / deeper, prune=True)
    assert (report.moved, report.encoded, report.removed, report.ok) == (7, 0, 1, True)
    assert sorted(gallery.ids) == sorted(set(images_of(8)) - {"sub/3.png"})


def test_a_moved_library_that_lacks_much_is_not_believed(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    run(gallery, engine, folder_of(tmp_path / "old", 20))
    (tmp_path / "old").rename(tmp_path / "new")
    for number in range(0, 16, 2):
        (tmp_path / "new" / f"{number}.png").unlink()
    report = run(gallery, engine, tmp_path / "new", prune=True)
    assert (report.moved, report.removed, len(gallery)) == (12, 0, 20)
    assert [(refused.gone, refused.known) for refused in report.refused] == [(8, 20)]
    assert run(gallery, engine, tmp_path / "new", prune=True).refused == report.refused
    limit = PruneLimit(number=8)
    assert run(gallery, engine, tmp_path / "new", prune=True, limit=limit).removed == 8
    assert len(gallery) == 12 and gallery.verify().ok


def test_what_is_missing_from_a_moved_library_is_pruned_later_too(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    source = shard_of(tmp_path / "old.tar", 8)
    folder_of(tmp_path / "old", 8)
    run(gallery, engine, tmp_path / "old", source)
    before = gallery.snapshot().rows.take(gallery.snapshot().live_rows())
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "0.png").unlink()
    report = run(gallery, engine, tmp_path / "new")
    assert (report.moved, report.encoded, report.ok, len(gallery)) == (7, 0, True, 16)
    assert sources_of(gallery)["0.png"] == f"{tmp_path}/new/0.png"
    snapshot = gallery.snapshot()
    assert sorted(snapshot.rows.take(snapshot.live_rows()).tolist()) == sorted(before.tolist())
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (tmp_path / "old" / "0.png").write_bytes(images_of(1)["0.png"])
    shutil.rmtree(tmp_path / "new")
    assert run(gallery, engine, tmp_path / "old").moved == 8, "and back"
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "0.png").unlink()
    run(gallery, engine, tmp_path / "new")
    assert run(gallery, engine, tmp_path / "new", prune=True).removed == 1


def test_a_library_that_is_away_is_no_earlier_place_of_another(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    run(gallery, engine, folder_of(tmp_path / "drive", 8))
    (tmp_path / "drive").rename(tmp_path / "unplugged")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "unplugged" / "0.png", tmp_path / "other" / "0.png")
    report = run(gallery, engine, tmp_path / "other", prune=True)
    assert (report.moved, report.removed, report.refused, len(gallery)) == (1, 0, [], 8)


def test_files_that_were_renamed_are_followed(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = folder_of(tmp_path / "f", 8)
    run(gallery, engine, folder)
    (folder / "sub").rename(folder / "summer")
    (folder / "0.png").rename(folder / "first.png")
    report = run(gallery, engine, folder, prune=True)
    assert (report.moved, report.encoded, report.removed, report.ok) == (5, 0, 0, True)
    expected = {name.replace("sub/", "summer/"): data for name, data in images_of(8).items()}
    expected["first.png"] = expected.pop("0.png")
    assert_rows_are_those_of(gallery, engine, expected)


def test_a_whole_folder_that_was_renamed_inside_is_no_loss(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f" / "all", 30).parent
    with Gallery.create(tmp_path / "g", engine) as gallery:
        run(gallery, engine, folder)
        (folder / "all").rename(folder / "everything")
        run(gallery, engine, folder)
        assert len(gallery) == 60, "without --prune nothing is removed"
        report = run(gallery, engine, folder, prune=True)
        assert report.ok and len(gallery) == 30
        assert_rows_are_those_of(gallery, engine, images_of(30, "everything/"))


def test_what_was_copied_or_touched_is_not_encoded_again(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    folder = folder_of(tmp_path / "f", 4)
    run(gallery, engine, folder)
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    report = run(gallery, engine, folder)
    assert (report.unchanged, report.encoded) == (4, 0)
    shutil.copytree(folder, folder / "copy")
    report = run(gallery, engine, folder, prune=True)
    assert (report.added, report.unchanged, report.encoded, report.moved) == (4, 4, 0, 0)
    assert_rows_are_those_of(gallery, engine, images_of(4) | images_of(4, "copy/"))


def test_content_decides_not_size_and_time(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder = folder_of(tmp_path / "f", 2)
    run(gallery, engine, folder)
    size = (folder / "0.png").stat().st_size
    other = next(data for n in range(100, 400) if len(data := png(n)) == size)
    (folder / "0.png").unlink()
    (folder / "new.png").write_bytes(other)
    report = run(gallery, engine, folder, prune=True)
    assert (report.added, report.encoded, report.moved, report.removed) == (1, 1, 0, 1)
    assert_rows_are_those_of(gallery, engine, {"sub/1.png": png(1), "new.png": other})


def test_names_that_were_exchanged_follow_their_content(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    folder = folder_of(tmp_path / "f", 4)
    run(gallery, engine, folder)
    (folder / "0.png").rename(folder / "x")
    (folder / "2.png").rename(folder / "0.png")
    (folder / "x").rename(folder / "2.png")
    run(gallery, engine, folder, prune=True)
    assert_rows_are_those_of(gallery, engine, images_of(4) | {"0.png": png(2), "2.png": png(0)})


def test_equal_names_of_two_folders_do_not_replace_each_other(tmp_path: Path, engine: Engine) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for number, folder in enumerate((first, second)):
        folder.mkdir()
        (folder / "IMG_1.png").write_bytes(png(number))
        (folder / f"only{number}.png").write_bytes(png(10 + number))
    with Gallery.create(tmp_path / "g", engine) as gallery:
        run(gallery, engine, first)
        for _ in range(2):
            report = run(gallery, engine, second, prune=True)
            assert [entry.id for entry in report.broken] == ["IMG_1.png"]
            assert f"{first}/IMG_1.png" in report.broken[0].reason and "--prefix" in report.broken[0].reason
        expected = {"IMG_1.png": png(0), "only0.png": png(10), "only1.png": png(11)}
        assert_rows_are_those_of(gallery, engine, expected)
        # Whichever comes first in a run, the one that was there stays.
        report = run(gallery, engine, second, first)
        assert len(report.broken) == 1 and report.unchanged == 3
        report = run(gallery, engine, f"b={second}")
        assert report.ok and report.added == 2
        assert_rows_are_those_of(gallery, engine, expected | {"b/IMG_1.png": png(1), "b/only1.png": png(11)})
        assert run(gallery, engine, second, replace=True).replaced == 1
        assert_rows_are_those_of(
            gallery, engine, expected | {"IMG_1.png": png(1), "b/IMG_1.png": png(1), "b/only1.png": png(11)}
        )


def test_a_name_whose_file_is_away_is_not_free(tmp_path: Path, engine: Engine) -> None:
    first, second = folder_of(tmp_path / "a", 1), tmp_path / "b"
    second.mkdir()
    (second / "0.png").write_bytes(png(9))
    with Gallery.create(tmp_path / "g", engine) as gallery:
        run(gallery, engine, first)
        first.rename(tmp_path / "unplugged")
        report = run(gallery, engine, second)
        assert len(report.broken) == 1 and "cannot be found now" in report.broken[0].reason
        assert_rows_are_those_of(gallery, engine, {"0.png": png(0)})


@pytest.mark.parametrize("kind", ["shards", "patterns", "names", "manifests"])
def test_other_sources_keep_their_names_apart_too(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with Gallery.create(tmp_path / "g", engine) as gallery:
        for number, name in enumerate("ab"):
            here = tmp_path / name
            here.mkdir()
            (here / "x.png").write_bytes(png(number))
            monkeypatch.chdir(here)
            if kind == "shards":
                shard_of(here / "s.tar", 1 + number)
                data = (here / "s.tar").read_bytes()
                (here / "s.tar").write_bytes(
                    data.replace(png(0), png(0)[:-30] + bytes(30)) if number else data
                )
            (here / "m.jsonl").write_text(json.dumps({"id": 1, "image": "x.png"}))
            source = {"shards": "s.tar", "patterns": "*.png", "names": "x.png", "manifests": "m.jsonl"}[kind]
            report = run(gallery, engine, source)
            assert report.ok == (number == 0), kind
        assert len(report.broken) == 1 and "that of another image" in report.broken[0].reason


def test_a_manifest_may_give_its_own_item_another_image(
    tmp_path: Path, engine: Engine, gallery: Gallery
) -> None:
    folder_of(tmp_path / "f", 2)
    for image in ("f/0.png", "f/sub/1.png"):
        (tmp_path / "m.jsonl").write_text(json.dumps({"id": "sku", "image": image}))
        assert run(gallery, engine, tmp_path / "m.jsonl").ok
    assert_rows_are_those_of(gallery, engine, {"sku": png(1)})


def test_changed_metadata_needs_no_encoder(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    folder_of(tmp_path / "f", 1)
    for price in (1, 2):
        (tmp_path / "m.jsonl").write_text(json.dumps({"id": "sku", "image": "f/0.png", "price": price}))
        report = run(gallery, engine, tmp_path / "m.jsonl")
    assert (report.replaced, report.encoded) == (1, 0)
    assert gallery.snapshot().matching("price = 2") == 1
    assert_rows_are_those_of(gallery, engine, {"sku": png(0)})


def test_one_folder_in_many_spellings_is_one(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "f", 4)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    with Gallery.create(tmp_path / "g", engine) as gallery:
        run(gallery, engine, "link")
        for spelled in ("f", "./f/", "f/../link/", str(folder), str(tmp_path / "link")):
            report = run(gallery, engine, spelled, prune=True)
            assert (report.unchanged, report.removed, report.ok) == (4, 0, True), spelled
        (folder / "0.png").unlink()
        assert run(gallery, engine, "link/sub/..", prune=True).removed == 1
        report = run(gallery, engine, "f", "link", "f/**/*.png")
        assert report.ok and report.left_out["named twice"] == 6


def test_sources_of_another_spelling_are_brought_up_to_date(tmp_path: Path, engine: Engine) -> None:
    folder = folder_of(tmp_path / "f", 2)
    (tmp_path / "link").symlink_to(folder)
    with Gallery.create(tmp_path / "g", engine) as gallery:
        run(gallery, engine, folder)
        snapshot = gallery.snapshot()
        stamps = dict(gallery.stamps())
        keys = snapshot.keys(snapshot.live_rows()).tolist()
        gallery.add_vectors(  # as an earlier version stored it
            ids=snapshot.ids(snapshot.live_rows()),
            vectors=snapshot.rows.take(snapshot.live_rows()),
            sources=[f"{tmp_path}/link/{name}" for name in snapshot.ids(snapshot.live_rows())],
            stamps=[Stamp.parse(stamps[key]).version for key in keys],  # type: ignore[union-attr]
            existing="replace",
        )
        (folder / "0.png").unlink()
        report = run(gallery, engine, tmp_path / "link", prune=True)
        assert (report.moved, report.removed, report.encoded) == (1, 1, 0)
        assert sources_of(gallery) == {"sub/1.png": f"{folder}/sub/1.png"}


def test_a_shard_that_was_moved_is_followed(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    (tmp_path / "new").mkdir()
    run(gallery, engine, shard_of(tmp_path / "s.tar", 3))
    (tmp_path / "s.tar").rename(tmp_path / "new" / "s.tar")
    report = run(gallery, engine, tmp_path / "new" / "s.tar", prune=True)
    assert (report.moved, report.encoded, report.ok) == (3, 0, True)
    os.utime(tmp_path / "new" / "s.tar", ns=(1, 1))
    report = run(gallery, engine, tmp_path / "new" / "s.tar", prune=True)
    assert (report.unchanged, report.encoded, report.ok) == (3, 0, True)
    assert gallery.snapshot().matching("number >= 0") == 3


def test_a_shard_that_was_renamed_is_followed(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    run(gallery, engine, shard_of(tmp_path / "s.tar", 3))
    (tmp_path / "s.tar").rename(tmp_path / "t.tar")
    report = run(gallery, engine, tmp_path / "t.tar")
    assert (report.moved, report.added, report.encoded, report.ok) == (3, 0, 0, True)
    assert len(gallery) == 6
    (tmp_path / "t.tar").rename(tmp_path / "u.tar")
    report = run(gallery, engine, tmp_path / "u.tar", prune=True)
    assert (report.moved, report.encoded, report.ok) == (3, 0, True)
    assert_rows_are_those_of(gallery, engine, {f"u/{n:04d}.png": png(n) for n in range(3)})


def test_a_copy_of_a_shard_elsewhere_takes_nothing_away(tmp_path: Path, engine: Engine) -> None:
    (tmp_path / "drive").mkdir()
    with Gallery.create(tmp_path / "g", engine) as gallery:
        run(gallery, engine, shard_of(tmp_path / "drive" / "s.tar", 3))
        (tmp_path / "drive" / "s.tar").rename(tmp_path / "copy.tar")
        report = run(gallery, engine, tmp_path / "copy.tar", prune=True)
        assert (report.encoded, report.removed, report.ok, len(gallery)) == (0, 0, True, 6)


def test_vectors_without_an_image_get_one(tmp_path: Path, engine: Engine, gallery: Gallery) -> None:
    gallery.add_vectors(ids=["0.png"], vectors=engine.encode_images([png(7)]))
    report = run(gallery, engine, folder_of(tmp_path / "f", 1))
    assert (report.replaced, report.encoded) == (1, 1)
    assert_rows_are_those_of(gallery, engine, {"0.png": png(0)})


@pytest.mark.parametrize(
    "stamp",
    [
        Stamp(stamp_of(5, 7)),
        Stamp("5-7-abc", "0" * 32),
        Stamp("5-7", None, "f" * 16),
        Stamp("5-7", "1" * 32, "0" * 16),
    ],
)
def test_stamps_are_read_back(stamp: Stamp) -> None:
    assert Stamp.parse(str(stamp)) == stamp and stamp.size == 5
    assert Stamp.parse(None) is None
    assert Stamp.parse("x#y@z") is None
