"""What a process or machine lacks is said as that: no file is damaged for it, and nothing is lost."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cir_infer.bundle import Bundle
from cir_infer.errors import BundleError, GalleryError, ImageError, lack
from cir_infer.gallery import Gallery
from cir_infer.gallery.disk import files
from cir_infer.inputs.images import load_image
from tests.bundles import write_tiny_bundle
from tests.gallery.support import filled
from tests.indexing.support import png

SWEEP = """
import os, resource, sys
import numpy as np
from cir_infer import Gallery
from cir_infer.bundle import Bundle
from cir_infer.errors import CirError
from cir_infer.inputs.images import load_image

def read():
    bundle = Bundle("b.cir")
    bundle.verify()
    bundle.graph("image")

def write():
    with Gallery.open("g") as gallery:
        gallery.add_vectors(ids=["new"], vectors=np.ones((1, gallery.dimension)), existing="replace")

def look():
    with Gallery.open("g") as gallery:
        found = gallery.verify()
        assert found.ok, found.problems

def keep():
    with Gallery.open("g") as gallery:
        gallery.backup("copy")

def decode():
    load_image("a.png")

works = [read, write, look, keep, decode]
for work in works:
    work()
used = 1 + max(map(int, os.listdir("/proc/self/fd")))
fill = [os.open("/dev/null", os.O_RDONLY) for _ in range(used)]
first = max(fill) + 1
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for work in works:
    for room in range(30):
        resource.setrlimit(resource.RLIMIT_NOFILE, (first + room, hard))
        try:
            work()
        except CirError as error:
            print(work.__name__, room, str(error).replace("\\n", " "))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (first + 100, hard))
    work()
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are listed in /proc")
def test_want_of_descriptors_is_told_as_that(tmp_path: Path) -> None:
    """Every step that opens something meets the limit once."""
    write_tiny_bundle(tmp_path / "b.cir")
    filled(tmp_path / "g").close()
    (tmp_path / "a.png").write_bytes(png(1))
    done = subprocess.run(
        [sys.executable, "-c", SWEEP], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[-1] == "done", done.stderr
    assert {line.split()[0] for line in lines[:-1]} == {"read", "write", "look", "keep", "decode"}
    told = re.compile("damaged|altered|truncated|restore|verify|no backup|not a bundle|save it again", re.I)
    assert not [line for line in lines if told.search(line)]
    assert all("open" in line for line in lines[:-1])


def test_what_is_lacking_is_found_in_what_an_error_came_of() -> None:
    damaged = OSError(errno.EIO, "no")
    assert lack(None) is lack(damaged) is lack(ValueError("x")) is None
    for error in (MemoryError(), OSError(errno.ENOMEM, "x")):
        assert "memory" in str(lack(error))
    outer = ImageError("x")
    outer.__cause__ = OSError(errno.EMFILE, "x")
    assert "ulimit" in str(lack(outer))


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))])
def test_a_bundle_is_not_damaged_for_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = write_tiny_bundle(tmp_path / "b.cir")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("cir_infer.bundle.archive.opened_archive", fail)
    with pytest.raises(BundleError, match="no memory left"):
        Bundle(path)


def test_a_picture_without_permission_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(1))

    def fail(self: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(ImageError, match=r"a\.png cannot be read \(Permission denied\)$"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EACCES, "check its permissions"), (errno.EIO, "restore")]
)
def test_rows_that_may_not_be_read_are_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    filled(tmp_path / "g").close()

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with Gallery.open(tmp_path / "g", read_only=True) as gallery:
        monkeypatch.setattr(files, "open_file", fail)
        with pytest.raises(GalleryError, match=f"cannot be read .*{os.strerror(number)}.*{remedy}"):
            files.map_file(next((Path(gallery.path) / "rows").iterdir()))
