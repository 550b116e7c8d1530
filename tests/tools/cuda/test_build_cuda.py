"""The kernels' build asks nvcc what it knows: a Jetson's is seldom the newest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cuda import cuda_sources

TOOL = Path(__file__).parents[3] / "tools" / "cuda" / "build_cuda.py"

NVCC = """#!{python}
import sys
known, packs = {known!r}, {packs!r}
asked = sys.argv[1:]
if asked == ["--list-gpu-code"]:
    print("\\n".join(known))
elif asked == ["--help"]:
    print("--compress-mode [default,size,speed]" if packs else "--compress-all")
else:
    for option in asked:
        if option.startswith("-gencode") and ",code=sm_" in option and option.split(",code=")[1] not in known:
            sys.exit(f"nvcc fatal   : Unsupported gpu architecture {{option}}")
        if option.startswith("--compress-mode") and not packs:
            sys.exit(f"nvcc fatal   : Unknown option {{option}}")
    if {fails!r}:
        sys.exit("no memory")
    with open(asked[asked.index("-o") + 1], "w") as fatbin:
        fatbin.write("\\n".join(asked))
"""


def built_with(
    folder: Path, known: list[str], packs: bool, *options: str, fails: bool = False
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What the tool says, and the command that it gave to an nvcc that knows these architectures."""
    nvcc, fatbin = folder / "nvcc", folder / "out.fatbin"
    nvcc.write_text(NVCC.format(python=sys.executable, known=known, packs=packs, fails=fails))
    nvcc.chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(TOOL), "--kernels", "score", "--output", str(fatbin), *options],
        env={"NVCC": str(nvcc), "PATH": ""},
        capture_output=True,
        text=True,
    )
    return done, fatbin.read_text().splitlines() if fatbin.exists() else []


def targets(command: list[str]) -> list[str]:
    return [option.split(",code=")[1] for option in command if option.startswith("-gencode")]


def test_an_older_nvcc_compiles_what_it_knows(tmp_path: Path) -> None:
    """CUDA 12.2 and 12.6 of JetPack 6."""
    known = ["sm_50", "sm_72", "sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_90a"]
    done, command = built_with(tmp_path, known, False)
    assert done.returncode == 0, done.stderr
    assert targets(command) == ["sm_75", "sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "compute_80"]
    assert not any("compress" in option for option in command)
    assert "sm_100, sm_110, sm_120" in done.stdout and "left out" in done.stdout
    fatbin = tmp_path / "out.fatbin"
    record = json.loads((tmp_path / "out.fatbin.json").read_text())
    assert record == cuda_sources.record_of(
        cuda_sources.SCORE, fatbin.read_bytes(), [75, 80, 86, 87, 89, 90], True
    )


def test_a_compiler_that_fails_leaves_the_fatbin_before_without_a_word_for_these_sources(
    tmp_path: Path,
) -> None:
    for name in ("out.fatbin", "out.fatbin.json"):
        (tmp_path / name).write_text("{}")
    done, _ = built_with(tmp_path, ["sm_87", "sm_75"], False, "--architectures", "75", fails=True)
    assert done.returncode == 1 and "nvcc failed" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"nvcc", "out.fatbin"}


def test_a_new_one_compiles_all_and_packs_them(tmp_path: Path) -> None:
    known = [f"sm_{a}" for a in (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)]
    done, command = built_with(tmp_path, known, True)
    assert done.returncode == 0, done.stderr
    assert len(targets(command)) == 10 and "--compress-mode=speed" in command
    assert "left out" not in done.stdout


@pytest.mark.parametrize("options", [("--architectures", "120"), ("--check",), ("--update",)])
def test_what_was_asked_for_by_name_is_not_left_out(tmp_path: Path, options: tuple[str, ...]) -> None:
    done, command = built_with(tmp_path, ["sm_87"], False, *options)
    assert done.returncode == 1 and not command
    assert "does not know" in done.stderr and "sm_120; CUDA 13 does" in done.stderr


def test_one_that_is_too_old_is_named(tmp_path: Path) -> None:
    done, _ = built_with(tmp_path, ["sm_30", "sm_72"], False)
    assert done.returncode == 1 and "install CUDA 12.2 or later" in done.stderr
