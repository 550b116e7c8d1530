"""What is packed for a machine without a network comes out; no missing or damaged part goes unnoticed."""

from __future__ import annotations

import io
import json
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).parents[3] / "tools" / "packages" / "pack_offline.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    source = tmp_path / "libraries"
    (source / "deep").mkdir(parents=True)
    (source / "noise.so").write_bytes(np.random.default_rng(0).bytes(300_000))
    (source / "deep" / "zeros").write_bytes(bytes(100_000))
    (source / "deep" / "link.so").symlink_to("../noise.so")
    (tmp_path / "single.txt").write_text("one")
    done = run("pack", "--part-mib", 0.1, "-o", tmp_path / "parts", source, tmp_path / "single.txt")
    assert done.returncode == 0, done.stderr
    return tmp_path / "parts"


def test_parts_have_the_size_asked_for_and_come_back(packed: Path, tmp_path: Path) -> None:
    parts = sorted(packed.glob("offline.0*"))
    assert len(parts) == 3 and all(part.stat().st_size <= 104_857 for part in parts)
    done = run("unpack", packed, "-o", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    new = tmp_path / "new"
    assert (new / "libraries/noise.so").read_bytes() == (tmp_path / "libraries/noise.so").read_bytes()
    assert (new / "libraries/deep/link.so").resolve() == (new / "libraries/noise.so").resolve()
    assert (new / "libraries/deep/zeros").read_bytes() == bytes(100_000)
    assert (new / "single.txt").read_text() == "one"
    again = run("unpack", packed, "-o", new)
    assert again.returncode == 1 and "is not empty" in again.stderr


def test_what_is_missing_or_damaged_is_named(packed: Path, tmp_path: Path) -> None:
    (packed / "offline.000").unlink()
    content = bytearray((packed / "offline.001").read_bytes())
    content[100] ^= 1
    (packed / "offline.001").write_bytes(content)
    (packed / "offline.002").write_bytes((packed / "offline.002").read_bytes()[:-1])
    done = run("unpack", packed, "-o", tmp_path / "new")
    assert done.returncode == 1 and not (tmp_path / "new").exists()
    for said in ("offline.000 is missing", "offline.001 is damaged", "offline.002 has"):
        assert said in done.stderr


@pytest.mark.parametrize(
    "entries",
    [
        [("../escaped", "")],
        [("/tmp/escaped", "")],
        [("link", "../..")],
        [("a/b/link", "../.."), ("a/b/link/../escaped", "")],
        [("a/link", ".."), ("a/link/escaped", "")],
        [("a/link", "../b/../../escaped")],
    ],
)
def test_nothing_is_written_outside(entries: list[tuple[str, str]], tmp_path: Path) -> None:
    import hashlib

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:") as members:
        for name, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            members.addfile(info, io.BytesIO())
    data = lzma.compress(archive.getvalue())
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "evil.000").write_bytes(data)
    part = {"name": "evil.000", "bytes": len(data), "sha256": digest}
    listed = {"format": "cir-offline", "version": 1, "bytes": len(data), "sha256": digest, "parts": [part]}
    (tmp_path / "evil.json").write_text(json.dumps(listed))
    done = run("unpack", tmp_path, "-o", tmp_path / "new")
    assert done.returncode == 1 and "outside of" in done.stderr
    assert not (tmp_path / "escaped").exists()


def test_wrong_use_is_told(packed: Path, tmp_path: Path) -> None:
    assert "does not exist" in run("pack", "-o", tmp_path / "p", tmp_path / "nothing").stderr
    assert "already" in run("pack", "-o", packed, tmp_path / "single.txt").stderr
    assert "expected one list" in run("unpack", tmp_path / "libraries", "-o", tmp_path / "n").stderr
    assert run("pack").returncode == 2
