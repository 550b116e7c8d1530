#!/usr/bin/env python3
"""The folders of CUDA kernels, the fatbin that each becomes, and whether a fatbin is of them.

    tools/cuda/cuda_sources.py FOLDER   leaves with an error where the fatbins there are not of these sources

Beside a fatbin lies its record, kernels.fatbin.json, which tools/cuda/build_cuda.py writes: a digest of the
sources that it was compiled from, its architectures, and its own sha256. Whoever takes a fatbin that was made
before (wheels, an install, the checks of a GPU) asks first, or would take one of older kernels.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "score" / "cuda"
RECORD = ".json"  # behind a fatbin's name
FATBIN = ROOT / "cir_infer" / "gpu" / "kernels.fatbin"
ARCHITECTURES = (75, 80, 86, 87, 89, 90, 100, 110, 120)
REMEDY = "`make fatbin` writes them anew (needs nvcc)"


class Kernels(NamedTuple):
    """One folder of kernels that becomes one fatbin."""

    folder: Path
    source: str
    fatbin: Path
    shared: tuple[Path, ...] = ()  # headers of other folders
    shown: tuple[str, ...] = ()  # whose loops its README shows

    @property
    def table(self) -> Path:
        """What the compiler made of them."""
        return self.folder / "resources.json"

    @property
    def instructions(self) -> Path:
        """What its loops are in machine code."""
        return self.folder / "instructions.json"

    @property
    def readme(self) -> Path:
        """Holds a summary of the table."""
        return self.folder / "README.md"


SCORE = Kernels(
    KERNELS,
    "score.cu",
    FATBIN,
    shown=(
        *(f"scan_{dtype}_ratio2" for dtype in ("f32", "f16", "i8")),
        *(f"few_{dtype}_ratio2" for dtype in ("f16", "i8")),
        *(f"many_{dtype}_ratio2" for dtype in ("f16", "i8")),
        "read_bytes",
    ),
)
RECURRENT = Kernels(
    ROOT / "kernels" / "recurrent" / "cuda",
    "recurrent.cu",
    FATBIN.with_name("recurrent.fatbin"),
    (KERNELS / "device.cuh",),
    ("encode_gru", "encode_lstm"),
)
SETS = {"score": SCORE, "recurrent": RECURRENT}


def sources_hash(kernels: Kernels = SCORE) -> str:
    """Of every kernel source, in the order of their names."""
    digest = hashlib.sha256()
    for path in [*sorted(kernels.folder.glob("*.cu*")), *kernels.shared]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def record_of(kernels: Kernels, fatbin: bytes, architectures: Iterable[int], ptx: bool) -> dict[str, Any]:
    """What lies beside a fatbin that was just compiled."""
    return {
        "sources": sources_hash(kernels),
        "architectures": sorted(architectures),
        "ptx": ptx,
        "sha256": hashlib.sha256(fatbin).hexdigest(),
    }


def record_path(fatbin: Path) -> Path:
    """Beside the fatbin."""
    return fatbin.with_name(fatbin.name + RECORD)


def unfit(
    read: Callable[[str], bytes | None], architectures: Iterable[int] = (), ptx: bool = False
) -> list[str]:
    """Why fatbins may not stand for these sources; nothing where they may.

    Args:
        read: gives the content of a file that lies where they do, None where there is none.
        architectures: that each must have code for.
        ptx: whether each must have PTX for those to come.
    """
    said = (_unfit(kernels, read, list(architectures), ptx) for kernels in SETS.values())
    return [reason for reason in said if reason is not None]


def unfit_files(
    folder: Path = FATBIN.parent, architectures: Iterable[int] = (), ptx: bool = False
) -> list[str]:
    """`unfit` of the fatbins in a folder."""

    def read(name: str) -> bytes | None:
        return (folder / name).read_bytes() if (folder / name).is_file() else None

    return unfit(read, architectures, ptx)


def _unfit(
    kernels: Kernels, read: Callable[[str], bytes | None], architectures: list[int], ptx: bool
) -> str | None:
    name = kernels.fatbin.name
    fatbin, record = read(name), read(record_path(kernels.fatbin).name)
    if fatbin is None:
        return f"{name} is missing"
    try:
        told = json.loads(record or b"{}")
        sources, digest, known = told["sources"], told["sha256"], {*told["architectures"]}
        lacking = [f"sm_{number}" for number in architectures if number not in known]
        lacking += ["PTX"] if ptx and not told["ptx"] else []
    except (ValueError, LookupError, TypeError):
        return f"{name} has no {name}{RECORD} beside it that says what it was compiled from"
    if digest != hashlib.sha256(fatbin).hexdigest():
        return f"{name} is another than {name}{RECORD} tells of"
    if sources != sources_hash(kernels):
        return f"{name} was compiled from other sources than those of {kernels.folder.relative_to(ROOT)}"
    return f"{name} lacks {', '.join(lacking)}" if lacking else None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the folder of the fatbins")
    if reasons := unfit_files(Path(sys.argv[1])):
        sys.exit(f"error: {sys.argv[1]}: {'; '.join(reasons)}; {REMEDY}")
