"""However a program ends, the GPU is left clean and nothing is said: finalizers of ours and of PyCUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation.driver.building import build_driver, run_program
from tests.emulation.driver.conftest import missing
from tests.emulation.emulated import link

if missing():
    pytest.skip(missing(), allow_module_level=True)


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("left_open", 0, ""),
        ("opened_in_a_thread", 0, ""),
        ("opened_by_many_threads", 0, ""),
        ("dropped_in_threads", 0, ""),
        ("exit_in_the_middle", 3, ""),
        ("an_error_that_nobody_caught", 1, "RuntimeError: cuda (sm_75)"),
        ("threads_still_at_work", 0, ""),
        ("a_forked_child_ends_first", 0, ""),
        ("out_of_memory", 0, ""),
    ],
)
def test_a_program_ends(program: str, code: int, said: str, tmp_path: Path) -> None:
    report = tmp_path / "report"
    settings: dict[str, str | int] = {"report": str(report), "gpu": "sm_75", "memory": 320 << 20}
    done = run_program("tests.emulation.driver.endings", program, driver=build_driver(), **settings)
    assert done.returncode == code, done.stderr
    assert done.stderr.strip().endswith(said) if said else done.stderr == "", done.stderr
    # Streams and modules may go with the context, memory not.
    left = report.read_text() if report.exists() else ""
    assert "memory" not in left and "complaint" not in left and "context" not in left, left


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"devices": 0}, "the GPU cannot be used: the NVIDIA driver sees no GPU; use the CPU scorer"),
        ({"init": 804}, "the NVIDIA driver does not start (error 804)"),
        (
            {"gpu": "sm_61"},
            "Emulated sm_61 has compute capability 6.1; the kernels need 7.5 (Turing) or later",
        ),
        ({"version": 12060}, None),
        ({"gpu": "sm_130"}, None),
        ({"gpu": "sm_130", "version": 12080}, "compile them here, or with the CUDA version"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_an_error_of_ours(settings: dict[str, str | int], said: str) -> None:
    done = run_program("tests.emulation.driver.endings", "cannot_open", driver=build_driver(), **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout if said else done.stdout == ""


def test_a_driver_that_pycuda_was_not_built_for_is_an_error_of_ours(tmp_path: Path) -> None:
    """Headers that are newer than the driver: PyCUDA asks for names that it does not have."""
    source = tmp_path / "old.cpp"
    source.write_text(
        'extern "C" int cuInit(unsigned) { return 0; }\n'
        'extern "C" int cuDeviceGetCount(int* n) { return *n = 1, 0; }\n'
    )
    library = tmp_path / "libcuda.so.1"
    link(library, [source], "-fPIC", "-Wl,-soname,libcuda.so.1")
    done = run_program("tests.emulation.driver.endings", "cannot_open", driver=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "the GPU needs PyCUDA, which cannot be imported" in done.stdout
    assert "undefined symbol: cu" in done.stdout and "update the driver" in done.stdout
