"""Files below a folder, however deep it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cir_export.samples import image_files
from cir_infer.errors import UsageError
from cir_infer.foreign import files_below

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


def test_files_of_a_folder_deeper_than_calls_may_be(tmp_path: Path, deep: Path) -> None:
    """`--calibrate` ended in a RecursionError."""
    for path in (deep / "a.png", tmp_path / "B.PNG", tmp_path / "c.txt"):
        path.touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    assert files_below(tmp_path, {".png"}) == [tmp_path / "B.PNG", deep / "a.png"]
    assert image_files(tmp_path, {"kind": "pixels"}) == files_below(tmp_path, {".png"})
    with pytest.raises(UsageError, match=r"holds no file of type \.npy"):
        image_files(tmp_path, {"kind": "features"})
