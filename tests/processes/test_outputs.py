"""What a file may take the place of."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cir_bench.results import ensure_writable, write_text
from cir_export.targets import check_target
from cir_infer.bundle import write_bundle
from cir_infer.errors import CirError
from cir_infer.processes.outputs import check_replaceable, replacing, scratch_beside
from tests.bundles import manifest_of, members_of


def written(path: Path) -> None:
    with replacing(path) as file:
        file.write(b"new")


@pytest.mark.parametrize(
    "write",
    [
        check_replaceable,
        check_target,
        ensure_writable,
        written,
        lambda path: write_text(path, "new"),
        lambda path: write_bundle(path, manifest_of("artemis"), members_of("artemis")),
    ],
    ids=["check", "target", "result", "checkpoint", "text", "bundle"],
)
def test_a_device_or_a_pipe_stays_what_it_is(write: Callable[[Path], Any], tmp_path: Path) -> None:
    # As root `-o /dev/null` put a file in its place, for every program of the machine.
    pipe, link, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    folder.mkdir()
    for place, said in ((pipe, "device or a pipe"), (link, "device or a pipe"), (folder, "folder")):
        with pytest.raises((OSError, CirError), match=said):
            write(place)
    assert stat.S_ISFIFO(pipe.lstat().st_mode) and link.is_symlink()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "link", "pipe"]
    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        write(tmp_path / name)


UNSEEN = """
import os, sys
from pathlib import Path
from cir_infer.processes.outputs import replacing

if os.getuid() == 0:
    os.setuid(65534)
with replacing(Path(sys.argv[1])) as file:
    file.write(b"new")
"""


def test_a_folder_that_may_not_be_looked_at_takes_files() -> None:
    """They were in their places, and said to have failed."""
    with tempfile.TemporaryDirectory() as place:  # others may enter it
        Path(place).chmod(0o755)
        folder = Path(place, "drop")
        folder.mkdir()
        folder.chmod(0o333)
        done = subprocess.run(
            [sys.executable, "-c", UNSEEN, folder / "new.json"], capture_output=True, text=True
        )
        folder.chmod(0o755)
        assert (done.returncode, done.stderr) == (0, "")
        assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("new.json", b"new")]


def test_a_file_system_that_syncs_no_folders_takes_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refused(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(fd)

    monkeypatch.setattr(os, "fsync", refused)
    written(tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"new"


KILLED = """
import os, signal, sys
from pathlib import Path
from cir_infer.processes.outputs import replacing

with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_program_left_goes_with_the_next_file_of_that_name(tmp_path: Path) -> None:
    """A bundle of gigabytes stayed half written beside the one that was made later, for ever."""
    target = tmp_path / "model.cir"
    target.write_bytes(b"old")
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(target)])
        assert done.returncode == -signal.SIGKILL and target.read_bytes() == b"old"
    (left,) = (entry for entry in tmp_path.iterdir() if entry != target)  # the second removed the first's
    assert left.read_bytes() == b"half"
    for other in ("model.cir2", "another.cir"):
        written(tmp_path / other)
    assert left.exists(), "those of other names are others'"
    written(target)
    assert target.read_bytes() == b"new" and not left.exists()


SCRATCH = """
import os, signal, sys
from pathlib import Path
from cir_infer.processes.outputs import scratch_beside

with scratch_beside(Path(sys.argv[1])) as folder:
    (folder / "unverified.cir").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def scratched(path: Path) -> None:
    with scratch_beside(path) as folder:
        (folder / "weights.bin").write_bytes(b"")


@pytest.mark.parametrize("next_one", [written, scratched])
def test_what_a_killed_program_left_of_what_a_file_was_made_of_goes_with_the_next(
    tmp_path: Path, next_one: Callable[[Path], None]
) -> None:
    """The bundle that an export verifies, and its weights, are as large as what it writes in the end."""
    target = tmp_path / "model.cir"
    done = subprocess.run([sys.executable, "-c", SCRATCH, str(target)])
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert [file.name for file in left.iterdir()] == ["unverified.cir"]
    for other in ("model.cir2", "another.cir"):
        next_one(tmp_path / other)
    assert left.exists(), "those of other names are others'"
    next_one(target)
    assert not left.exists()


def test_a_folder_that_is_in_use_or_of_another_kind_stays(tmp_path: Path) -> None:
    target, photos = tmp_path / "model.cir", tmp_path / "photos"
    photos.mkdir()
    (photos / "photo.png").write_bytes(b"precious")
    (tmp_path / ".model.cir.00000000.cir-scratch").symlink_to(photos)
    (tmp_path / ".model.cir.11111111.cir-scratch").write_bytes(b"precious")
    before = set(tmp_path.iterdir())
    with ExitStack() as block:
        folder = block.enter_context(scratch_beside(target))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "weights.bin").write_bytes(b"needed")
        written(target)
        scratched(target)
        assert (folder / "weights.bin").read_bytes() == b"needed"
        if (child := os.fork()) == 0:  # one that comes to the block's end does not take the folder along
            block.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert folder.exists()
    with pytest.raises(ZeroDivisionError), scratch_beside(target):
        raise ZeroDivisionError
    assert set(tmp_path.iterdir()) == before | {target}
    assert (photos / "photo.png").exists()


def test_what_is_being_written_stays_and_so_does_what_is_called_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "model.cir"
    precious = [
        tmp_path / name
        for name in (
            ".model.cir.0123abcd",
            ".model.cir.0123ABCD.cir-part",
            ".model.cir.0123abcde.cir-part",
            "model.cir.0123abcd.cir-part",
            ".modelxcir.0123abcd.cir-part",
        )
    ]
    for file in precious:
        file.write_bytes(b"precious")
    (tmp_path / ".model.cir.00000000.cir-part").symlink_to(precious[0])
    (tmp_path / ".model.cir.11111111.cir-part").mkdir()
    with replacing(target) as slower:
        slower.write(b"slower")
        written(target)  # by somebody else meanwhile
        assert target.read_bytes() == b"new"
    assert target.read_bytes() == b"slower"
    with pytest.raises(ZeroDivisionError), replacing(target):
        raise ZeroDivisionError
    assert target.read_bytes() == b"slower"
    names = {entry.name for entry in tmp_path.iterdir()}
    assert names == {
        "model.cir",
        *(file.name for file in precious),
        *(f".model.cir.{digit * 8}.cir-part" for digit in "01"),
    }
    assert all(file.read_bytes() == b"precious" for file in precious)
