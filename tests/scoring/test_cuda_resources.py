"""What the compiler said of the kernels, and whether committed measurements are of these kernels."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import pytest

from tools.cuda import build_cuda

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def kernels_in_sources() -> set[str]:
    """The names that the macros of the sources make."""
    names: set[str] = set()
    for path in build_cuda.SCORE.folder.glob("*.cuh"):
        text = path.read_text()
        names |= {n for n in re.findall(r"^CIR_KERNEL\((\w+),", text, re.MULTILINE) if n != "name"}
        stems = re.findall(r"^    CIR_(?:SCAN|SHORTLIST)\((\w+)_##suffix##_(\w+),", text, re.MULTILINE)
        names |= {f"{a}_{suffix}_{b}" for a, b in stems for suffix in ("f32", "f16", "i8")}
    return names


def test_the_table_is_of_these_sources_and_shows_no_spill() -> None:
    table = json.loads(build_cuda.SCORE.table.read_text())
    assert table["sources"] == build_cuda.sources_hash(), (
        "kernels/score/cuda changed since its resources were recorded; run tools/cuda/build_cuda.py --update"
    )
    assert set(table["kernels"]) == kernels_in_sources()
    for kernel, by_arch in table["kernels"].items():
        assert set(by_arch) == {f"sm_{a}" for a in build_cuda.ARCHITECTURES}, kernel
        for arch, use in by_arch.items():
            assert use["spill_bytes"] == use["stack_bytes"] == 0, (kernel, arch)
            assert use["blocks"] >= 1, (kernel, arch)


def test_the_kernels_readme_summarises_the_table() -> None:
    table, text = (
        json.loads(build_cuda.SCORE.table.read_text())["kernels"],
        build_cuda.SCORE.readme.read_text(),
    )
    assert build_cuda.with_summary(text, table) == text, "run tools/cuda/build_cuda.py --update"
    assert build_cuda.summary(table).count("\n| `scan_*` |") == 1


def test_the_compilers_report_is_read() -> None:
    log = """
ptxas info    : Compiling entry function 'scan_f16_ratio2' for 'sm_90'
ptxas info    : Function properties for scan_f16_ratio2
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 8 bytes cumulative stack size
ptxas info    : Function properties for _Z13kth_of_sharedPKmjjR9Selection
    0 bytes stack frame, 1 bytes spill stores, 1 bytes spill loads
ptxas info    : Compiling entry function 'read_bytes' for 'sm_90'
ptxas info    : Function properties for read_bytes
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers
"""
    found = build_cuda.resources(log)
    assert found["scan_f16_ratio2"]["sm_90"] == {
        "registers": 128,
        "stack_bytes": 8,
        "spill_bytes": 18,
        "shared_bytes": 18_112,
        "blocks": 2,
        "warps": 16,
    }
    assert found["read_bytes"]["sm_90"]["spill_bytes"] == 0
    assert any("local memory" in said for said in build_cuda.complaints(found, (90,)))


def warn_of_older_kernels(path: Path) -> None:
    result = json.loads(path.read_text())
    if result.get("kind") == "gpu-check" and result.get("sources") != build_cuda.sources_hash():
        warnings.warn(f"{path.name} was measured with older CUDA kernels; run make gpu-check", stacklevel=2)


def test_committed_measurements_are_of_these_kernels() -> None:
    for path in sorted(RESULTS.glob("*.json")):
        warn_of_older_kernels(path)


def test_a_measurement_of_older_kernels_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a-gpu.json"
    path.write_text(json.dumps({"kind": "gpu-check", "sources": build_cuda.sources_hash()}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_older_kernels(path)
    path.write_text(json.dumps({"kind": "gpu-check", "sources": "0" * 64}))
    with pytest.warns(UserWarning, match=r"a-gpu\.json was measured with older CUDA kernels"):
        warn_of_older_kernels(path)
