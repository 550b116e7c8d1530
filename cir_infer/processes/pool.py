"""Jobs done by several children, each a module of ours that was started by `child_command`.

A job and its answer are one line of JSON each. Nothing is pickled, so nothing that is sent can run.

    def main() -> None:
        serve(work)                       # in the module: `work` takes a job and returns its answer

    with ChildPool("package.module", 4) as pool:
        for answer in pool.map(jobs): ...
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from cir_infer.errors import CirError, DeviceError
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.processes.threads import Task, Threads

__all__ = ["ChildPool", "serve"]


class ChildPool:
    """At most `count` children of one module. The end of the block ends them.

    Raises:
        DeviceError: a child cannot be started, or ended before it answered.
    """

    def __init__(self, module: str, count: int) -> None:
        self._module, self._count = module, count
        self._threads = Threads(count)
        self._own = threading.local()
        self._running: list[subprocess.Popen[bytes]] = []
        self._stopped = False

    def __enter__(self) -> ChildPool:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self._stopped = True
        self._threads.close()
        for child in list(self._running):
            if kind is not None:
                child.kill()
            with suppress(OSError):
                child.stdin.close()  # type: ignore[union-attr]
            child.wait()

    def map(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """The answers in the order of the jobs, a few jobs ahead.

        Raises:
            DeviceError: a child failed; the message says how.
        """
        remaining = iter(jobs)
        waiting: deque[Task[Any]] = deque()
        while True:
            for job in islice(remaining, max(0, 2 * self._count - len(waiting))):
                waiting.append(self._threads.submit(self._ask, job))
            if not waiting:
                return
            yield waiting.popleft().result()

    def _ask(self, job: Any) -> Any:
        child: subprocess.Popen[bytes] | None = getattr(self._own, "child", None)
        if child is None:
            child = self._own.child = self._start()
        assert child.stdin is not None and child.stdout is not None
        line = b""
        with suppress(OSError):
            child.stdin.write(json.dumps(job).encode() + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
        if not line.endswith(b"\n"):
            child.kill()
            raise DeviceError(
                f"a process of {self._module} ended with code {child.wait()} before it answered, "
                "perhaps for want of memory; ask for fewer"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise DeviceError(f"a process of {self._module} failed: {answer['error']}")
        return answer["done"]

    def _start(self) -> subprocess.Popen[bytes]:
        if self._stopped:
            raise DeviceError(f"the pool of {self._module} was closed")
        try:
            child = start_child(
                child_command(self._module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=child_environment(),
            )
        except OSError as error:
            raise DeviceError(f"a process of {self._module} cannot be started: {error}") from error
        self._running.append(child)
        return child


def serve(work: Callable[[Any], Any]) -> None:
    """Answer jobs from stdin until it ends; what `work` prints goes to stderr."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        try:
            answer = {"done": work(json.loads(line))}
        except CirError as error:
            answer = {"error": str(error)}
        except (OSError, MemoryError) as error:
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
