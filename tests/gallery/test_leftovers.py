"""What a crash leaves is removed; what is not provably the gallery's own is not, and links lead nowhere."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery
from cir_infer.gallery.disk import drafts
from cir_infer.gallery.rows.vectors import row_tensors
from tests.gallery.support import as_version_1, filled, names, vectors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with filled(tmp_path / "g", 10) as gallery:
        gallery.add_vectors(ids=["x", "y"], vectors=vectors(2))
        gallery.remove(["i3"])
    return tmp_path / "g"


def segment(path: Path, number: int = 1) -> Path:
    return path / "rows" / f"{number:010d}.safetensors"


def leave(path: Path, number: int, length: int | None = None) -> None:
    """A row file of the gallery itself that no commit names, cut short as by a crash."""
    with Gallery.open(path) as gallery:
        tensors = row_tensors("float16", vectors(1).astype(np.float16), None)
        written = path / "rows" / gallery._store.write_segment(tensors, 1, 1, 1).name
    data = written.read_bytes()[:length]
    written.unlink()
    segment(path, number).write_bytes(data)


@pytest.mark.parametrize("length", [0, 110, None])
def test_leftovers_of_a_crash_are_swept_by_the_next_commit(path: Path, length: int | None) -> None:
    leave(path, 3, length)
    with Gallery.open(path) as gallery:
        gallery.add_vectors(ids=["z"], vectors=vectors(1))
        assert sorted(file.name for file in (path / "rows").iterdir()) == [
            segment(path, number).name for number in (1, 2, 4)
        ]
        assert gallery.verify().ok


def test_what_others_left_meanwhile_is_swept_by_whoever_stays_open(path: Path) -> None:
    """A service that had committed once never looked again: a killed `cir-index` left its rows for months."""
    with Gallery.open(path) as gallery:
        gallery.add_vectors(ids=["z"], vectors=vectors(1))
        leave(path, 4)
        gallery.remove(["i4"])
        assert segment(path, 4).exists()  # until its number is behind: it may belong to a commit under way
        gallery.add_vectors(ids=["zz"], vectors=vectors(1))
        assert not segment(path, 4).exists()
        old = segment(path, 2).read_bytes()
        gallery.compact()
        segment(path, 2).write_bytes(old)  # as where it could not be removed
        gallery.remove(["zz"])
        assert not segment(path, 2).exists() and gallery.verify().ok


def test_leftovers_from_before_an_upgrade_are_swept_too(path: Path) -> None:
    as_version_1(path)
    leave(path, 3)
    with Gallery.open(path) as gallery:
        gallery.add_vectors(ids=["z"], vectors=vectors(1))
    assert not segment(path, 3).exists() and segment(path, 4).exists()


def test_a_file_of_a_commit_that_is_under_way_is_no_leftover(path: Path) -> None:
    leave(path, 9)
    with Gallery.open(path) as gallery:
        gallery.add_vectors(ids=["z"], vectors=vectors(1))
    assert segment(path, 9).exists()


def test_files_that_cannot_be_proved_to_be_leftovers_stay(path: Path) -> None:
    with filled(path.with_name("other"), 3):
        pass
    with Gallery.open(path) as gallery:
        gallery.compact()
    precious = {
        "0000000001.safetensors": segment(path.with_name("other")).read_bytes(),
        "0000000002.safetensors": b"half written, by somebody",
        "2.safetensors": b"",
        "notes.txt": b"precious",
        "0000000001.safetensors.bak": b"",
    }
    pins = {"1": b"precious", "007": b"", "999999": b"", "x": b""}
    for folder, files in (("rows", precious), ("readers", pins)):
        for name, data in files.items():
            (path / folder / name).write_bytes(data)
    os.mkfifo(path / "readers" / "2")
    with Gallery.open(path) as gallery:
        gallery.add_vectors(ids=["z"], vectors=vectors(1))
        gallery.remove(["z"])
        gallery.compact()
    for folder, files in (("rows", precious), ("readers", pins)):
        assert {name: (path / folder / name).read_bytes() for name in files} == files
    assert (path / "readers" / "2").is_fifo()


def everything(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


@pytest.mark.parametrize("part", ["rows", "readers", "catalogue.sqlite"])
def test_a_part_that_is_a_link_is_refused(path: Path, part: str) -> None:
    elsewhere = path.with_name("elsewhere")
    (path / part).rename(elsewhere)
    (path / part).symlink_to(elsewhere)
    before = everything(path.parent)
    for options in ({}, {"read_only": True}):
        with pytest.raises(GalleryError, match=f"its {part} is a link"):
            Gallery.open(path, **options)
    assert everything(path.parent) == before


@pytest.mark.parametrize("part", ["rows", "readers"])
def test_a_folder_that_becomes_a_link_while_it_is_open_is_left_alone(path: Path, part: str) -> None:
    elsewhere = path.with_name("elsewhere")
    with Gallery.open(path) as gallery:
        (path / part).rename(elsewhere)
        (path / part).symlink_to(elsewhere)
        for name in ("1", "2", "17", "notes.txt"):
            (elsewhere / name).write_bytes(b"")
        before = everything(elsewhere)
        for change in (lambda: gallery.remove(["i1"]), gallery.compact):
            with pytest.raises(GalleryError, match=f"its {part} was exchanged for another"):
                change()
        assert everything(elsewhere) == before
    assert everything(elsewhere) == before


@pytest.mark.parametrize("part", ["catalogue.sqlite-wal", "catalogue.sqlite-shm", "writer.lock", "committed"])
def test_files_beside_the_catalogue_are_not_followed_through_links(path: Path, part: str) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(b"precious")
    (path / part).unlink(missing_ok=True)
    (path / part).symlink_to(elsewhere)
    if part == "committed":  # a courtesy that can be done without
        with Gallery.open(path) as gallery:
            gallery.remove(["i1"])
    else:
        with pytest.raises(GalleryError, match="is a link"), Gallery.open(path, wait=0) as gallery:
            gallery.remove(["i1"])
    assert elsewhere.read_bytes() == b"precious"


BUILD = """
import os, signal, sys
import numpy as np
from cir_infer.gallery import Gallery
from cir_infer.gallery.disk import drafts

drafts._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
what, path = sys.argv[1:]
if what == "create":
    Gallery.create(path, dimension=8)
else:
    Gallery.open(path + ".source").export(path)
"""


@pytest.mark.parametrize("what", ["create", "export"])
def test_drafts_of_killed_runs_are_removed_by_the_next_one(tmp_path: Path, what: str) -> None:
    path = tmp_path / "shop.safetensors"
    filled(tmp_path / "shop.safetensors.source", 3).close()
    innocent = tmp_path / ".shop.safetensors.01234567.cir-draft"
    innocent.write_bytes(b"without a lock beside it nobody knows whose it is")
    before = everything(tmp_path)
    for _ in range(2):
        result = subprocess.run([sys.executable, "-c", BUILD, what, str(path)])
        assert result.returncode == -signal.SIGKILL
        drafts = [file for file in tmp_path.iterdir() if file.name.endswith(".cir-draft")]
        assert len(drafts) == 2  # the innocent one, and that of the last run alone
    if what == "create":
        Gallery.create(path, dimension=8).close()
    else:
        with Gallery.open(tmp_path / "shop.safetensors.source") as source:
            source.export(path)
    assert {file.name for file in tmp_path.iterdir()} == {name for name in before if "/" not in name} | {
        path.name
    }


@pytest.mark.parametrize("vacant", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_child_that_comes_out_of_a_draft_leaves_it_to_its_parent(
    tmp_path: Path, vacant: bool, fails: bool
) -> None:
    made: drafts.Made = []
    path, parent = tmp_path / "g", os.getpid()
    if vacant:
        path.mkdir()
    try:
        with drafts.filled(path, made, "last") if vacant else drafts.drafted(path, made) as draft:
            draft.mkdir()
            (draft / "last").touch()
            child = os.fork()
            if child:
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == (2 if fails else 1)
                assert (draft / "last").exists()
            elif fails:
                raise ValueError("of the child")
    except GalleryError:
        if os.getpid() != parent:
            os._exit(1)
        raise
    finally:
        if os.getpid() != parent:
            os._exit(2)
    assert [*path.iterdir()] == [path / "last"] and [*tmp_path.iterdir()] == [path]


def test_a_draft_that_somebody_is_at_work_on_stays(tmp_path: Path) -> None:
    from cir_infer.gallery.disk.drafts import drafted

    with drafted(tmp_path / "g", []) as draft:
        draft.mkdir()
        with pytest.raises(GalleryError, match="expected"), drafted(tmp_path / "g", []):
            assert draft.is_dir()
            raise GalleryError("expected")
        assert draft.is_dir()
    assert [file.name for file in tmp_path.iterdir()] == ["g"]


def test_what_a_failed_build_made_is_gone(tmp_path: Path) -> None:
    bad = vectors(5)
    bad[3] = np.nan
    with pytest.raises(GalleryError, match="'i3'"):
        Gallery.from_arrays(tmp_path / "g", ids=names(5), vectors=bad)
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(tmp_path)


def test_an_empty_folder_becomes_a_gallery_without_being_replaced(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir(0o750)
    (volume / "lost+found").mkdir()
    before = volume.stat()
    with Gallery.create(volume, dimension=2) as gallery:
        gallery.add_vectors(ids=["a"], vectors=np.ones((1, 2)))
    assert (volume.stat().st_ino, volume.stat().st_mode) == (before.st_ino, before.st_mode)
    assert {"catalogue.sqlite", "rows", "readers"} <= {entry.name for entry in volume.iterdir()}
    assert not [entry for entry in volume.iterdir() if entry.name.endswith((".cir-draft", ".lock.cir-draft"))]
    with Gallery.open(volume) as gallery:
        assert gallery.ids == ["a"] and gallery.verify().ok
    with pytest.raises(GalleryError, match="already exists"):
        Gallery.create(volume, dimension=2)


def test_filling_a_folder_begins_again_where_it_was_killed(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "other", dimension=2):
        pass
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "other").rename(volume / ".gallery.01234567.cir-draft")
    (volume / ".gallery.01234567.cir-draft.lock").touch()
    with Gallery.create(volume, dimension=2) as gallery:
        assert gallery.verify().ok
    assert not [entry for entry in volume.iterdir() if "cir-draft" in entry.name]


FILL = """
import os, pathlib, sys
import numpy as np
from cir_infer.gallery import Gallery

rename = pathlib.Path.rename
def killing(self, target):
    rename(self, target)
    if self.name == "rows":
        os.kill(os.getpid(), 9)
pathlib.Path.rename = killing
Gallery.from_arrays(sys.argv[1], ids=["a"], vectors=np.ones((1, 2)))
"""


@pytest.mark.parametrize("foreign", [None, "rows/precious", "rows/link", "draft"])
def test_parts_that_a_killed_run_had_moved_are_taken_back_if_nothing_else_is_there(
    tmp_path: Path, foreign: str | None
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "precious").write_text("of somebody else")
    assert subprocess.run([sys.executable, "-c", FILL, str(volume)]).returncode == -signal.SIGKILL
    assert list((volume / "rows").iterdir()) and not (volume / "catalogue.sqlite").exists()
    if foreign == "rows/precious":
        (volume / foreign).write_text("of somebody else")
    elif foreign == "rows/link":  # another folder, with the names of the first
        (volume / "rows").rename(tmp_path / "rows")
        (volume / "rows").symlink_to(tmp_path / "rows")
    elif foreign == "draft":  # a note that names what is not in the folder
        (note,) = volume.glob(".gallery.*.cir-draft/.moving")
        outside = tmp_path / "precious"
        parts = [["../precious", outside.stat().st_ino, []], *json.loads(note.read_text())]
        note.write_text(json.dumps(parts))
    if foreign in (None, "draft"):
        Gallery.create(volume, dimension=2).close()
        assert not [entry for entry in volume.iterdir() if "cir-draft" in entry.name]
    else:
        before = everything(tmp_path)
        with pytest.raises(GalleryError, match="already exists; open it, or choose another path"):
            Gallery.create(volume, dimension=2)
        assert everything(tmp_path) == before
    assert (tmp_path / "precious").read_text() == "of somebody else"


def test_of_two_who_fill_a_folder_at_once_the_first_wins(tmp_path: Path) -> None:

    volume = tmp_path / "volume"
    volume.mkdir()
    with (
        pytest.raises(GalleryError, match="already exists; open it, or choose another path"),
        drafts.filled(volume, [], "catalogue.sqlite") as draft,
    ):
        Gallery.create(draft, dimension=2).close()
        Gallery.from_arrays(volume, ids=["a"], vectors=np.ones((1, 3))).close()
    with Gallery.open(volume) as gallery:
        assert gallery.ids == ["a"] and gallery.verify().ok
        gallery.add_vectors(ids=["b"], vectors=np.ones((1, 3)))
    assert not [entry for entry in volume.iterdir() if "cir-draft" in entry.name]


@pytest.mark.parametrize("name", ["notes.txt", "rows/1", ".hidden", "readers/7"])
def test_a_folder_with_anything_in_it_is_left_alone(tmp_path: Path, name: str) -> None:
    volume = tmp_path / "volume"
    (volume / name).parent.mkdir(parents=True)
    (volume / name).write_text("precious")
    with pytest.raises(GalleryError, match="already exists"):
        Gallery.create(volume, dimension=2)
    assert (volume / name).read_text() == "precious"


def test_empty_folders_of_somebody_else_are_no_leftovers(tmp_path: Path) -> None:
    (tmp_path / "volume" / "rows").mkdir(parents=True)
    with pytest.raises(GalleryError, match="already exists"):
        Gallery.create(tmp_path / "volume", dimension=2)
    assert (tmp_path / "volume" / "rows").is_dir()


def test_parts_that_cannot_be_taken_back_at_once_are_the_next_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    volume = tmp_path / "volume"
    volume.mkdir()
    with monkeypatch.context() as failing:
        rename = Path.rename

        def only_readers(path: Path, target: Path) -> Path:
            if path.name != "readers" or path.parent == volume:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return rename(path, target)

        failing.setattr(drafts.Path, "rename", only_readers)
        with pytest.raises(GalleryError):
            Gallery.create(volume, dimension=2)
    assert (volume / "readers").is_dir()
    Gallery.create(volume, dimension=2).close()
    assert not [entry for entry in volume.iterdir() if "cir-draft" in entry.name]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_journal_from_elsewhere_removes_no_file(path: Path, tmp_path: Path, read_only: bool) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_bytes(b"what no gallery wrote\0" * 3)
    pages = (path / "catalogue.sqlite").stat().st_size // 4096
    # A journal of nothing, of a transaction over several databases: SQLite removes the file that it names.
    magic = bytes.fromhex("d9d505f920a163d7")
    name = os.fsencode(precious)
    named = struct.pack(">I", (1 << 30) // 4096 + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    journal = path / "catalogue.sqlite-journal"
    journal.write_bytes((magic + struct.pack(">IIIII", 0, 1, pages, 512, 4096)).ljust(512, b"\0") + named)
    with pytest.raises(GalleryError, match=r"catalogue\.sqlite-journal, which no gallery writes"):
        Gallery.open(path, read_only=read_only)
    assert precious.exists() and journal.exists()
    journal.unlink()
    with Gallery.open(path, read_only=read_only) as gallery:
        assert gallery.verify().ok
