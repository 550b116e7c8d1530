"""However a program ends, the GPU is left clean and nothing is said: finalizers of ours and of PyCUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.emulation.driver.building import build_driver, run_program
from tests.emulation.driver.conftest import missing

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
