"""Services in processes of their own, and a process that asks them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cir_bench.serving.load import Job
from cir_infer.commands.serve import main
from cir_infer.errors import CirError
from cir_infer.processes.children import child_command, child_environment

__all__ = ["Service", "Told", "asked", "minimal_service", "own_service"]

_PATIENCE = 120.0


class Service:
    """A service that runs.

    Attributes:
        port: where it listens, on this machine.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self.port = process, port

    def cpu(self) -> float:
        """Seconds of processor time that the process has taken; 0 where the system does not tell."""
        try:
            told = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """MiB of the process that nothing else shares; 0 where the system does not tell."""
        try:
            text = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0.0
        found = re.search(r"RssAnon:\s+(\d+)", text)
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def own_service(bundle: str, gallery: str, threads: int, *flags: str) -> Iterator[Service]:
    """`cir-serve`, ready.

    Raises:
        CirError: it did not begin.
    """
    told = [bundle, "--gallery", gallery, "--port=0", "--json", "--no-access-log", f"--threads={threads}"]
    with _started(child_command("cir_bench.serving.served", *told, *flags)) as process:
        said = ""
        while not said.rstrip().endswith("}"):
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise CirError("cir-serve did not begin; start it by hand to see why")
            said += line
        yield Service(process, int(json.loads(said)["address"].rpartition(":")[2]))


@contextmanager
def minimal_service(model: str, gallery: str, threads: int) -> Iterator[Service]:
    """The handler of `minimal`, ready.

    Raises:
        CirError: it did not begin.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = child_command("cir_bench.serving.minimal", model, gallery, str(port), str(threads))
    with _started(command) as process:
        until = time.monotonic() + _PATIENCE
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise CirError(
                    "the handler to compare with did not begin; python -m cir_bench.serving.minimal"
                )
            time.sleep(0.1)
        yield Service(process, port)


@contextmanager
def _started(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, env=child_environment(), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


class Told(NamedTuple):
    """What a load gave.

    Attributes:
        answers: (status, milliseconds, second of the run) of every request.
        cpu: seconds of processor time that asking took.
    """

    answers: list[tuple[int, float, float]]
    cpu: float


def asked(job: Job) -> Told:
    """Ask, from a process of its own.

    Raises:
        CirError: it failed.
    """
    done = subprocess.run(
        child_command("cir_bench.serving.load"),
        input=job.to_json(),
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise CirError(f"the process that asks failed: {done.stderr.strip()[-300:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return Told([(int(status), float(ms), float(at)) for status, ms, at in told["told"]], told["cpu"])


if __name__ == "__main__":
    sys.exit(main())
