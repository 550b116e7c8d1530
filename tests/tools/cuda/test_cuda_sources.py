"""A fatbin stands for the sources that its record names, and for no others."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.cuda import cuda_sources

TOOL = Path(__file__).parents[3] / "tools" / "cuda" / "cuda_sources.py"

Damage = Callable[[Path], object]


def fatbins(
    folder: Path, architectures: tuple[int, ...] = cuda_sources.ARCHITECTURES, ptx: bool = True
) -> Path:
    """Two with their records, as tools/cuda/build_cuda.py leaves them."""
    for kernels in cuda_sources.SETS.values():
        content = kernels.source.encode()
        record = cuda_sources.record_of(kernels, content, architectures, ptx)
        (folder / kernels.fatbin.name).write_bytes(content)
        cuda_sources.record_path(folder / kernels.fatbin.name).write_text(json.dumps(record))
    return folder


def says(folder: Path, **changed: object) -> None:
    path = folder / "kernels.fatbin.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_those_of_these_sources_are_taken(tmp_path: Path) -> None:
    assert cuda_sources.unfit_files(fatbins(tmp_path), cuda_sources.ARCHITECTURES, ptx=True) == []
    done = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "kernels.fatbin").unlink(), "kernels.fatbin is missing"),
        (
            lambda folder: (folder / "kernels.fatbin").write_bytes(b"other"),
            "another than kernels.fatbin.json",
        ),
        (lambda folder: (folder / "kernels.fatbin.json").unlink(), "no kernels.fatbin.json"),
        (lambda folder: (folder / "kernels.fatbin.json").write_text("[1]"), "no kernels.fatbin.json"),
        (lambda folder: (folder / "kernels.fatbin.json").write_bytes(b"\xff{"), "no kernels.fatbin.json"),
        (lambda folder: says(folder, architectures=90), "no kernels.fatbin.json"),
        (lambda folder: says(folder, sources="0" * 64), "other sources than those of kernels/score/cuda"),
    ],
)
def test_any_other_is_refused_with_the_reason(tmp_path: Path, damage: Damage, reason: str) -> None:
    damage(fatbins(tmp_path))
    (found,) = cuda_sources.unfit_files(tmp_path)
    assert reason in found
    done = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and reason in done.stderr and "make fatbin" in done.stderr


def test_what_is_not_compiled_for_a_gpu_does_not_serve_it(tmp_path: Path) -> None:
    fatbins(tmp_path, (75, 90), ptx=False)
    assert cuda_sources.unfit_files(tmp_path, [90]) == []
    lacking = cuda_sources.unfit_files(tmp_path, [75, 87, 90], ptx=True)
    assert lacking == ["kernels.fatbin lacks sm_87, PTX", "recurrent.fatbin lacks sm_87, PTX"]


def test_a_change_of_a_source_or_of_a_header_that_both_read_is_another_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.cu").write_text("// kernels")
    header = tmp_path / "a" / "shared.cuh"
    header.write_text("// shared")
    a = cuda_sources.Kernels(tmp_path / "a", "a.cu", tmp_path / "a.fatbin")
    b = cuda_sources.Kernels(tmp_path / "b", "b.cu", tmp_path / "b.fatbin", (header,))
    monkeypatch.setattr(cuda_sources, "SETS", {"a": a, "b": b})
    monkeypatch.setattr(cuda_sources, "ROOT", tmp_path)
    fatbins(tmp_path)
    assert cuda_sources.unfit_files(tmp_path) == []
    (tmp_path / "b" / "b.cu").write_text("// kernels, changed")
    assert [reason.split()[0] for reason in cuda_sources.unfit_files(tmp_path)] == ["b.fatbin"]
    header.write_text("// shared, changed")
    assert [reason.split()[0] for reason in cuda_sources.unfit_files(tmp_path)] == ["a.fatbin", "b.fatbin"]
