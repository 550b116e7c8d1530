"""Several processes that answer on one socket, and the one that starts them and looks after them."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from cir_infer.errors import CirError
from cir_infer.processes.children import child_command, child_environment
from cir_infer.serving.settings import Settings

__all__ = ["supervise"]

_log = logging.getLogger(__name__)
_SHORTEST_LIFE = 10.0
_MOST_FAILURES = 5


class _Worker:
    """A process that answers."""

    def __init__(self, settings: Settings, opened: socket.socket, counters: str, verbose: bool) -> None:
        command = child_command(
            "cir_infer.serving.worker",
            settings.to_json(),
            str(opened.fileno()),
            "verbose" if verbose else "quiet",
            str(os.getpid()),
        )
        self.begun = time.monotonic()
        self.ready = threading.Event()
        self.outdated = False
        self.process = subprocess.Popen(
            command,
            env=child_environment(PROMETHEUS_MULTIPROC_DIR=counters),
            pass_fds=(opened.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """The worker says one line when it is ready, and nothing after."""
        assert self.process.stdout is not None
        with self.process.stdout as said:
            if said.readline().strip() == b"ready":
                self.ready.set()
            said.read()

    def tell(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


def supervise(settings: Settings, opened: socket.socket, verbose: bool, ready: Callable[[], None]) -> None:
    """Serve with `settings.workers` processes until SIGTERM or SIGINT.

    SIGHUP is passed on to all of them. One that dies is started again; if they die early again and again, or
    the first cannot start, all end.

    Args:
        settings: what to serve.
        opened: the socket; closed at the end.
        verbose: whether workers say what they do.
        ready: called when all answer.

    Raises:
        CirError: the workers cannot start, or do not stay.
        KeyboardInterrupt: it was SIGINT.
    """
    told: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    before = {number: signal.signal(number, lambda got, _: told.append(got)) for number in numbers}
    counters = tempfile.mkdtemp(prefix="cir-serve-")
    workers: list[_Worker] = []
    try:
        workers += [_Worker(settings, opened, counters, verbose) for _ in range(settings.workers)]
        _watch(workers, told, counters, lambda: _Worker(settings, opened, counters, verbose), ready)
    finally:
        for worker in workers:
            worker.tell(signal.SIGTERM)
        opened.close()  # while one had it, clients would still get connections, that nobody serves
        until = time.monotonic() + settings.drain + 10
        for worker in workers:
            try:
                worker.process.wait(max(until - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        shutil.rmtree(counters, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in told:
        raise KeyboardInterrupt


def _watch(
    workers: list[_Worker],
    told: list[int],
    counters: str,
    start: Callable[[], _Worker],
    ready: Callable[[], None],
) -> None:
    failures, announced = 0, False
    while True:
        while told:
            if told[0] != signal.SIGHUP:
                return
            told.pop(0)
            for worker in workers:
                worker.outdated = True
        for worker in workers:
            # Before it is ready, the signal would end it, or it has opened the old bundle already.
            if worker.outdated and worker.ready.is_set():
                worker.outdated = False
                worker.tell(signal.SIGHUP)
        if not announced and all(worker.ready.is_set() for worker in workers):
            announced = True
            ready()
        for at, worker in enumerate(workers):
            code = worker.process.poll()
            if code is None:
                continue
            if not announced and not worker.ready.is_set():
                raise CirError("a worker could not start; it says above why")
            failures = failures + 1 if time.monotonic() - worker.begun < _SHORTEST_LIFE else 1
            if failures > _MOST_FAILURES:
                raise CirError(f"workers end again and again, the last with {code}; see the log")
            _log.warning("a worker ended with %s; another takes its place", code)
            _forget(worker.process.pid, counters)
            workers[at] = start()
        time.sleep(0.05)


def _forget(process: int, counters: str) -> None:
    """Its counters go on counting; what was true only while it lived does not."""
    from prometheus_client import multiprocess

    untyped: Any = multiprocess
    with contextlib.suppress(OSError, ValueError):
        untyped.mark_process_dead(process, counters)
