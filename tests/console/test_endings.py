"""What ends a command is told as what it came of: an interrupt, a want of memory or of open files."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest

from cir_infer.console.common import run_command
from cir_infer.errors import UsageError


def raised_from(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


INTERRUPTED = """
import contextlib, os, signal, sys
from cir_infer.console.common import run_command
from cir_infer.errors import CirError, UsageError
number, raised = int(sys.argv[1]), sys.argv[2]

@run_command
def main(arguments=None):
    lost = ImportError("a bad install of the library")
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(number)
    if raised == "as it is":
        raise lost
    if raised == "wrapped":
        raise UsageError("the library cannot be imported") from lost
    raise CirError("the disk is full")

before = signal.getsignal(number)
code = main()
assert signal.getsignal(number) is before
sys.exit(code)
"""


def interrupted(number: int, raised: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", INTERRUPTED, str(int(number)), raised]
    return subprocess.run(program, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("raised", ["as it is", "wrapped"])
def test_an_interrupt_is_one_whatever_a_library_made_of_it(number: int, code: int, raised: str) -> None:
    """As NumPy at its import: what it raises says nothing of the interrupt."""
    done = interrupted(number, raised)
    assert done.returncode == code and "bad install" not in done.stderr


def test_what_fails_after_an_interrupt_was_seen_to_is_told() -> None:
    done = interrupted(signal.SIGINT, "another error")
    assert done.returncode == 1 and "the disk is full" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (raised_from(ImportError("initialization failed"), KeyboardInterrupt()), 130, "interrupted"),
        (raised_from(UsageError("no such package"), KeyboardInterrupt()), 130, "interrupted"),
        (MemoryError(), 1, "there is no memory left"),
        (OSError(errno.EMFILE, "Too many open files", "x.py"), 1, "x.py: this process has too many open"),
        (ImportError("libx.so: cannot open shared object file: Too many open files"), 1, "ulimit -n"),
    ],
)
def test_what_ends_a_command_is_told_as_what_it_came_of(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @run_command
    def main(arguments: object = None) -> int:
        raise error

    assert main() == code
    stderr = capsys.readouterr().err
    assert said in stderr and "unexpected" not in stderr
