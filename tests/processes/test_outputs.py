"""What a file may take the place of."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cir_bench.results import ensure_writable, write_text
from cir_export.container import replacing
from cir_export.targets import check_target
from cir_infer.bundle import write_bundle
from cir_infer.errors import CirError
from cir_infer.processes.outputs import check_replaceable
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
