"""Services in processes of their own, and a process that asks them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cir_bench.serving.load import Job
from cir_infer.commands.serve import main
from cir_infer.errors import CirError
from cir_infer.processes.children import child_command, child_environment

__all__ = ["Service", "Told", "answer_to", "asked", "bare_service", "minimal_service", "own_service"]

_PATIENCE = 120.0


class Service:
    """A service that runs.

    Attributes:
        port: where it listens, on this machine.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self.port = process, port

    def cpu(self) -> float:
        """Seconds of processor time that the process and its workers have taken; 0 where nobody tells."""
        return sum(map(_cpu_of, (self._process.pid, *_children_of(self._process.pid))))


def _cpu_of(process: int) -> float:
    try:
        told = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK")


def _children_of(process: int) -> list[int]:
    try:
        told = [file.read_text() for file in Path(f"/proc/{process}/task").glob("*/children")]
    except OSError:
        return []
    return [int(number) for text in told for number in text.split()]


@contextmanager
def own_service(bundle: str, gallery: str, threads: int, *flags: str) -> Iterator[Service]:
    """`cir-serve`, ready.

    Raises:
        CirError: it did not begin.
    """
    told = [bundle, "--gallery", gallery, "--port=0", "--json", "--no-access-log", f"--threads={threads}"]
    with _started(child_command("cir_bench.serving.served", *told, *flags)) as process:
        said = ""
        with _in_time(process):
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
    with _listening("cir_bench.serving.minimal", model, gallery, str(threads)) as service:
        yield service


@contextmanager
def bare_service(answer: bytes) -> Iterator[Service]:
    """The handler of `bare`, ready.

    Args:
        answer: what it gives, head and body.

    Raises:
        CirError: it did not begin.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.bin"
        file.write_bytes(answer)
        with _listening("cir_bench.serving.bare", str(file)) as service:
            yield service


@contextmanager
def _listening(module: str, *arguments: str) -> Iterator[Service]:
    """A program that says in its first line on which port it listens, see `listening`."""
    with _started(child_command(module, *arguments)) as process:
        with _in_time(process):
            said = process.stdout.readline() if process.stdout else ""
        if not said.strip().isdecimal():
            raise CirError(f"the handler to compare with did not begin; python -m {module}")
        yield Service(process, int(said))


@contextmanager
def _in_time(process: subprocess.Popen[str]) -> Iterator[None]:
    """What a program says first is awaited for a time; then it is ended, and says no more."""
    late = threading.Timer(_PATIENCE, process.kill)
    late.start()
    try:
        yield
    finally:
        late.cancel()


def answer_to(request: bytes, port: int) -> bytes:
    """What a service says to a request, head and body, as it is on the wire.

    Raises:
        CirError: it is no answer.
    """
    with socket.create_connection(("127.0.0.1", port), _PATIENCE) as connection:
        connection.sendall(request)
        said = b""
        while b"\r\n\r\n" not in said or len(said) < _whole(said):
            part = connection.recv(1 << 16)
            if not part:
                raise CirError("cir-serve closed the connection; start it by hand to see why")
            said += part
    if not said.startswith(b"HTTP/1.1 200"):
        raise CirError(f"cir-serve answers with {said[:12].decode('latin-1')!r}; ask it by hand to see why")
    return said


def _whole(said: bytes) -> int:
    head, _, _ = said.partition(b"\r\n\r\n")
    found = re.search(rb"\ncontent-length: *(\d+)", head.lower())
    return len(head) + 4 + (int(found[1]) if found else 0)


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
