#!/usr/bin/env python3
"""Makes the Bochs of bochs.py, build/bochs/bochs, of its unpacked source.

    python3 tools/emulator/build_bochs.py bochs-3.0

The source is that of a release, or Debian's from trixie on (`apt-get source bochs`; its programs are built
without AVX-512 and AMX). bochs-3.0.patch mends what version 3.0 has of AMX, under Bochs' own licence: signed
bytes were multiplied as unsigned ones; who was interrupted got half of each tile back, and its shape
transposed; and Linux uses AMX only where it can forbid it (IA32_XFD), which there was not. Three minutes on
two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "bochs"
PATCH = Path(__file__).resolve().with_name("bochs-3.0.patch")
ASKED = (
    *(
        "--enable-cpu-level=6",
        "--enable-x86-64",
        "--enable-avx",
        "--enable-evex",
        "--enable-amx",
        "--enable-pci",
    ),
    *("--enable-all-optimizations", "--with-nogui", "--disable-docbook"),
)


def main(arguments: list[str]) -> None:
    """The command."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "configure").is_file():
        sys.exit(__doc__)
    source = BUILD / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(arguments[0], source)
    for command in (
        ["patch", "--strip=1", f"--input={PATCH}"],
        ["./configure", *ASKED],
        ["make", f"--jobs={os.cpu_count() or 1}"],
    ):
        subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(source / "bochs", BUILD / "bochs")
    print(BUILD / "bochs")


if __name__ == "__main__":
    main(sys.argv[1:])
