"""Pictures that a service keeps: after any kill those of items are there, and soon no others."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Gallery
from cir_infer.errors import GalleryError
from cir_infer.gallery.catalogue.catalogue import OutcomeUnknownError
from cir_infer.serving.pictures import Pictures
from tests.serving.support import address, png, running

KILLED = """
import os, signal, sys
from pathlib import Path
from cir_infer.gallery.gallery import Gallery
from tests.serving.support import address, png, running

bundle, name, behind, method, item, number = sys.argv[1:]
call = getattr(Gallery, name)

def killed(*arguments, **named):
    if behind == "behind":
        call(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(Gallery, name, killed)
with running(Path(bundle), writable=True) as (client, *_):
    if method == "PUT":
        client("PUT", address(item), png(int(number)), Content_Type="image/png")
    else:
        client("DELETE", address(item))
"""


def kill(own: Path, name: str, behind: bool, method: str, item: str, number: int = 0) -> None:
    """A service is killed in the middle of a change."""
    words = [name, "behind" if behind else "before", method, item, str(number)]
    done = subprocess.run([sys.executable, "-c", KILLED, str(own), *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


def images_of(own: Path) -> Path:
    return Path(f"{own.with_suffix('.gallery')}.images")


def files(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


def named(own: Path) -> set[Path]:
    """The pictures in the folder that items name."""
    with Gallery.open(own.with_suffix(".gallery"), read_only=True) as gallery:
        known = gallery.held(gallery.ids).values()
        sources = {Path(item.source) for item in known if item.source is not None}
    return {source for source in sources if source.is_relative_to(images_of(own))}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("change", ["new", "replaced", "deleted"])
def test_a_service_that_is_killed_in_a_change_leaves_no_picture_for_long(
    own: Path, change: str, behind: bool
) -> None:
    if change != "new":
        with running(own, writable=True) as (client, *_):
            assert client("PUT", address("it"), png(100), Content_Type="image/png").status == 201
    if change == "deleted":
        kill(own, "remove", behind, "DELETE", "it")
    else:
        kill(own, "add_vectors", behind, "PUT", "it", 101)
    left = files(images_of(own))
    assert named(own) < left, "something is left, and what items name is there"
    with running(own, writable=True) as (client, *_):
        assert client("PUT", address("other"), png(102), Content_Type="image/png").status == 201
        assert files(images_of(own)) == named(own)
        expected = {(False, "deleted"): 200, (True, "deleted"): 404, (False, "new"): 404}
        status = client("GET", f"{address('it')}/image").status
        assert status == expected.get((behind, change), 200)
        kept = {png(102)} | (
            {png(101 if behind and change != "deleted" else 100)} if status == 200 else set()
        )
        assert {file.read_bytes() for file in files(images_of(own))} == kept


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_picture_that_cannot_be_removed_goes_when_it_can(own: Path, change: str) -> None:
    """The note of it went all the same, so that nobody ever looked for it again."""
    with running(own, writable=True) as (client, *_):
        assert client("PUT", address("it"), png(100), Content_Type="image/png").status == 201
        assert client("PUT", address("other"), png(101), Content_Type="image/png").status == 201
        (picture,) = (file for file in files(images_of(own)) if file.read_bytes() == png(100))
        aside = picture.rename(own.parent / "aside")
        picture.mkdir()  # which no program removes as it does a file
        if change == "deleted":
            assert client("DELETE", address("it")).status == 204
        else:
            assert client("PUT", address("it"), png(102), Content_Type="image/png").status == 200
        for _ in range(2):
            assert client("PATCH", address("other"), {"metadata": {"colour": "red"}}).status == 200
            assert picture.exists()
        picture.rmdir()
        aside.rename(picture)
        assert client("PATCH", address("other"), {"metadata": {"colour": "blue"}}).status == 200
        assert files(images_of(own)) == named(own)


@pytest.fixture
def gallery(own: Path) -> Any:
    with Gallery.open(own.with_suffix(".gallery")) as found:
        yield found


def test_a_change_that_is_under_way_keeps_its_pictures(own: Path, gallery: Gallery) -> None:
    """Beside it another writer commits and looks for what killed ones have left."""
    pictures = Pictures(images_of(own))
    with pictures.changing(gallery) as note:
        place = pictures.place()
        note.add([("it", place)])
        pictures.keep(place, png(1))
        with running(own, writable=True) as (client, *_):
            assert client("PUT", address("other"), png(2), Content_Type="image/png").status == 201
        assert place.read_bytes() == png(1)
    assert len(files(images_of(own))) == 2, "and no note stays"


def test_what_a_change_of_another_gallery_left_is_not_ours_to_judge(own: Path, gallery: Gallery) -> None:
    """A gallery whose backup stands in for a while is back one day, with its items."""
    pictures = Pictures(images_of(own))
    place = pictures.place()
    with pytest.raises(OutcomeUnknownError), pictures.changing(gallery) as note:
        note.add([("it", place)])
        pictures.keep(place, png(1))
        raise OutcomeUnknownError("the disk failed in the last step")
    left = files(images_of(own))
    assert len(left) == 2
    gallery.backup(own.parent / "backup.gallery")
    with Gallery.open(own.parent / "backup.gallery") as backup, backup.writing():
        pictures.sweep(backup)
    assert files(images_of(own)) == left
    with gallery.writing():
        pictures.sweep(gallery)
    assert files(images_of(own)) == set()


def test_a_note_removes_nothing_but_pictures_that_no_item_names(
    own: Path, gallery: Gallery, tmp_path: Path
) -> None:
    """Neither what it names otherwise, nor by a folder of another spelling, nor behind a torn line."""
    images = images_of(own)
    pictures = Pictures(images)
    place = pictures.place()
    pictures.keep(place, png(1))
    gallery.add_vectors(
        ids=["it"],
        vectors=gallery.snapshot().rows.take([0]),
        sources=[tmp_path / "." / place.parent.name / place.name],
    )
    (images / "ab").mkdir(exist_ok=True)
    precious = [images / "ab" / "photo.png", images / "ab" / ("ab" + "c" * 22), tmp_path / ("ab" + "0" * 22)]
    for file in precious:
        file.write_bytes(png(2))
    lines = [
        {"gallery": gallery.uuid},
        ["it", place.name],
        ["gone", "photo.png"],
        ["gone", f"../../{precious[2].name}"],
        ["gone", 5],
        "gone",
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n["gone", "' + "\n"
    text += json.dumps(["gone", precious[1].name])
    (images / f".changing.{'0' * 24}").write_text(text)
    (images / f".changing.{'1' * 24}").write_text("")
    (images / f".changing.{'2' * 24}").symlink_to(precious[2])
    with gallery.writing():
        pictures.sweep(gallery)
    assert files(images) == {place, *precious[:2], images / f".changing.{'2' * 24}"}
    assert precious[2].exists()


def test_a_change_whose_pictures_cannot_be_noted_changes_nothing(own: Path, gallery: Gallery) -> None:
    images_of(own).write_text("in the way")
    with pytest.raises(GalleryError, match="picture"), Pictures(images_of(own)).changing(gallery):
        raise AssertionError("not reached")
