"""The scorer's program for cases, kernels/score/case_runner.cpp, with AMX's tiles in C++."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.emulation.emulated import BUILD, HERE, ROOT, Unit, compiled, link

SCORE = ROOT / "kernels" / "score"
SOURCES = (
    *("bounded", "exact", "integer_terms", "quantise", "scan", "screen_terms", "terms", "upper_bounds"),
    *("avx512", "avx512vnni", "avx512amx", "case_runner"),
)
FLAGS = (
    *("-std=c++17", "-O1", "-pthread", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    *("-fno-math-errno", "-ffp-contract=off", f"-I{SCORE}"),
    *("-DCIR_HAS_AMX", f'-DCIR_TILES="{HERE / "tiles.h"}"', "-mavx2", "-mfma", "-mf16c"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
)


@functools.cache
def program() -> Path:
    """The program, compiled unless it is there. It runs where AVX-512 with VNNI does."""
    inputs = [*sorted(SCORE.glob("*.h")), *sorted(SCORE.parent.glob("*.h")), HERE / "tiles.h"]
    files = [*(SCORE / f"{name}.cpp" for name in SOURCES), HERE / "tiles.cpp"]
    objects = compiled([Unit(BUILD / "tiles", file, FLAGS, inputs) for file in files])
    made = BUILD / "tiles" / f"cases-{'-'.join(path.stem.rsplit('-', 1)[1][:4] for path in objects)}"
    if not made.exists():
        link(made, objects, "-pthread", shared=False)
    return made
