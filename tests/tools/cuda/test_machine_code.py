"""The table of the kernels' loops: read off disassembled code, committed, and what counts as worse."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.cuda import build_cuda, machine_code

ROOT = Path(__file__).parents[3]

DISASSEMBLY = """
	code for sm_87
		Function : scan_a
        /*0000*/                   S2R R0, SR_TID.X ;                       /* 0x0000000000007919 */
                                                                            /* 0x000e220000002100 */
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2.64] ;         /* 0x000000 */
        /*0020*/                   HADD2.F32 R8, -RZ, R4.H0_H0 ;            /* 0x000000 */
        /*0030*/              @!P1 FFMA R9, R8, R8, R9 ;                    /* 0x000000 */
        /*0040*/                   PRMT R5, R4, 0x7440, R6 ;                /* 0x000000 */
        /*0050*/              @!P0 BRA 0x10 ;                               /* 0x000000 */
        /*0060*/                   IADD3 R0, R0, 0x1, RZ ;                  /* 0x000000 */
        /*0070*/               @P2 BRA 0x0 ;                                /* 0x000000 */
        /*0080*/                   EXIT ;                                   /* 0x000000 */
		Function : encode_b
        /*0000*/                   FFMA R9, R8, R8, R9 ;                    /* 0x000000 */
        /*0010*/               @P0 BRA 0x0 ;                                /* 0x000000 */
        /*0020*/                   MOV R1, R2 ;                             /* 0x000000 */
        /*0030*/               @P0 BRA 0x20 ;                               /* 0x000000 */
"""


@pytest.fixture
def table(tmp_path: Path) -> machine_code.Table:
    (tmp_path / "said.txt").write_text(DISASSEMBLY)
    tool = tmp_path / "cuobjdump"
    tool.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "-sass -arch sm_87" ] && cat {tmp_path}/said.txt\n')
    tool.chmod(0o755)
    return machine_code.table_of(str(tool), tmp_path / "any.fatbin", [87])


def test_innermost_loops_are_counted(table: machine_code.Table) -> None:
    scan = table["scan_a"]["sm_87"]
    assert scan["code_bytes"] == 9 * 16
    (loop,) = scan["loops"]  # not the one around it
    assert (loop["instructions"], loop["conversions"], loop["loads"], loop["products"]) == (5, 2, 1, 0)
    assert loop["slots_per_kb"] == 10.0  # 5 instructions for 512 bytes
    (loop,) = table["encode_b"]["sm_87"]["loops"]  # multiplies; the other one only moves
    assert loop["instructions"] == 2


def test_what_is_worse_is_named_and_what_is_better_is_not(table: machine_code.Table) -> None:
    assert machine_code.complaints(table, table, [87]) == []
    worse = copy.deepcopy(table)
    worse["scan_a"]["sm_87"]["loops"][0] |= {"instructions": 6, "conversions": 3}
    (first, second) = machine_code.complaints(worse, table, [87])
    assert "6 instructions, 5 in the table" in first and "3 conversions" in second
    assert machine_code.complaints(table, worse, [87]) == []
    fewer = copy.deepcopy(table)
    fewer["scan_a"]["sm_87"]["loops"][0]["loads"] = 2
    assert "1 loads, 2 in the table" in machine_code.complaints(table, fewer, [87])[0]
    assert "no longer compiled" in machine_code.complaints({}, table, [87])[0]
    assert "not in the table" in machine_code.complaints(table, {}, [87])[0]


@pytest.mark.parametrize("kernels", build_cuda.SETS.values(), ids=list(build_cuda.SETS))
def test_the_committed_table_is_of_these_kernels(kernels: build_cuda.Kernels) -> None:
    table = json.loads(kernels.instructions.read_text())
    assert table["sources"] == build_cuda.sources_hash(kernels), "run tools/cuda/build_cuda.py --update"
    assert set(table["kernels"]) == set(json.loads(kernels.table.read_text())["kernels"])
    for kernel, by_arch in table["kernels"].items():
        assert set(by_arch) == {f"sm_{a}" for a in build_cuda.ARCHITECTURES}, kernel
    shown = machine_code.summary(table["kernels"], kernels.shown)
    text = kernels.readme.read_text()
    assert build_cuda.between(text, build_cuda.LOOPS_BEGIN, shown, build_cuda.LOOPS_END) == text


def test_without_the_tool_the_build_says_that_loops_were_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUOBJDUMP", raising=False)
    assert build_cuda.hold_loops(str(tmp_path / "nvcc"), build_cuda.SCORE, tmp_path / "x", (87,), False) == []
    assert "not compared" in capsys.readouterr().out


def test_a_failing_disassembler_is_an_error(tmp_path: Path) -> None:
    tool = tmp_path / "cuobjdump"
    tool.write_text("#!/bin/sh\nexit 3\n")
    tool.chmod(0o755)
    with pytest.raises(SystemExit, match="code 3"):
        machine_code.table_of(str(tool), tmp_path / "x", [87])


def test_the_tool_runs_alone() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "cuda" / "build_cuda.py", "--help"], capture_output=True
    )
    assert done.returncode == 0
