"""Programs compiled for another machine and run by an emulator: `kernels/cases.h` from this side."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import threading
import weakref

__all__ = ["CaseRunner", "command"]


def command(variable: str) -> list[str]:
    """What a variable of the environment names: an emulator and its program, or nothing."""
    return shlex.split(os.environ.get(variable, ""))


class CaseRunner:
    """One process that answers case after case; threads take turns."""

    def __init__(self, command: list[str]) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
        )
        weakref.finalize(self, self._end, self._process)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        process.terminate()  # an emulator may have a machine to switch off
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def ask(self, case: bytes, size: int) -> bytes:
        """The answer, of so many bytes."""
        to, back = self._process.stdin, self._process.stdout
        assert to is not None and back is not None
        with self._turn:
            try:
                to.write(case)
                to.flush()
                answer = back.read(size)
            except BrokenPipeError:
                answer = b""
            if len(answer) < size:
                code = self._process.wait()
                self._said.seek(0)
                raise AssertionError(f"the program left with {code}: {self._said.read().decode()}")
            return answer
