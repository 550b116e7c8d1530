"""The emulated machine of `make amx-check`, as far as it goes without an emulator."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.emulator import bochs

ROOT = Path(__file__).parents[2]


def unpacked(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """What Linux reads of an initramfs: thirteen numbers, a name and the bytes, on multiples of four."""
    files, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        numbers = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        name = archive[at + 110 : at + 110 + numbers[11]]
        assert name.endswith(b"\0")
        start = -(-(at + 110 + numbers[11]) // 4) * 4
        if name == b"TRAILER!!!\0":
            return files
        files[name[:-1].decode()] = (numbers[1], archive[start : start + numbers[6]])
        at = -(-(start + numbers[6]) // 4) * 4


def test_an_initramfs_holds_what_it_was_given() -> None:
    files = {"init": (0o100755, b"12345"), "drivers": (0o040755, b""), "drivers/0.ko": (0o100644, bytes(999))}
    assert unpacked(bochs.archive(files)) == files


def test_drivers_come_behind_those_that_they_need(tmp_path: Path) -> None:
    needs = {
        "ata_piix": "libata,scsi_mod",
        "libata": "scsi_mod",
        "sd_mod": "scsi-mod,built_in",
        "scsi-mod": "",
        "x": "",
    }
    for name, others in needs.items():
        text = f"elf {name}\0depends={others}\0more".encode()
        if name == "libata":
            (tmp_path / f"{name}.ko.xz").write_bytes(lzma.compress(text))
        else:
            (tmp_path / f"{name}.ko").write_bytes(text)
    found = [module.split(b"\0")[0] for module in bochs.drivers(tmp_path)]
    assert found == [b"elf scsi-mod", b"elf libata", b"elf ata_piix", b"elf sd_mod"]


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("BOCHS", r"build_bochs\.py makes one"),
        ("LINUX_ROOT", "no Linux kernel with its modules|install bochsbios"),  # or more is not there
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, lacking: str, said: str) -> None:
    known = tmp_path / "bochs"
    known.write_text(f"#!/bin/sh\necho {bochs.MODEL}\n")
    known.chmod(0o755)
    environment = {**os.environ, "BOCHS": str(known), "LINUX_ROOT": str(tmp_path)}
    if lacking == "BOCHS":
        environment["BOCHS"] = str(tmp_path / "nothing")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/emulator/bochs.py", "program"],
        capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and re.search(said, done.stderr) and "Traceback" not in done.stderr
