"""Several processes that answer at one address, and the one that starts them and looks after them."""

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

from cir_infer.errors import CirError, shown
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.serving.settings import Settings

__all__ = ["supervise"]

_log = logging.getLogger(__name__)
_SHORTEST_LIFE = 10.0
_MOST_FAILURES = 5


class _Place:
    """An address at which several processes listen, each on a socket of its own.

    The system deals connections out among the sockets that listen. Of one that all of them share, whoever
    wakes first takes what is there, and others have nothing to do.

    It stays taken until it is closed, also while no worker is left: keys are sent here.

    Args:
        opened: listens there; closed with this.

    Raises:
        CirError: the address was lost.
    """

    def __init__(self, opened: socket.socket) -> None:
        self._opened = opened
        self._kind = opened.family, opened.type, opened.proto
        self._address = opened.getsockname()
        # Only now: if somebody else had listened there already, `listen` would have said so.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._taken = self.one_more()  # never listens, so no client waits here
        self._taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # else whoever has it could listen

    def close(self) -> None:
        """Leave the address to others, once no worker listens there."""
        self._opened.close()
        self._taken.close()

    def one_more(self) -> socket.socket:
        """One more socket, that listens once a worker makes it.

        Raises:
            CirError: the address was lost.
        """
        another = socket.socket(*self._kind)
        try:
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            another.bind(self._address)
        except OSError as error:
            another.close()
            raise CirError(
                f"cannot listen on {shown(self._address[0])} port {self._address[1]} any more "
                f"({error.strerror or error}); is it another program's by now?"
            ) from error
        return another


class _Worker:
    """A process that answers on a socket of its own, which is closed when it ends."""

    def __init__(self, settings: Settings, opened: socket.socket, counters: str, says: str) -> None:
        self.opened = opened
        command = child_command(
            "cir_infer.serving.worker",
            settings.to_json(),
            str(opened.fileno()),
            says,
            str(os.getpid()),
        )
        self.begun = time.monotonic()
        self.ready = threading.Event()
        self.outdated = False
        self.process = start_child(
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
        self.opened.close()  # else clients would still get connections, which nobody serves

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
    place = _Place(opened)
    told: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    before = {number: signal.signal(number, lambda got, _: told.append(got)) for number in numbers}
    counters = tempfile.mkdtemp(prefix="cir-serve-")
    workers: list[_Worker] = []

    def start() -> _Worker:
        return _Worker(settings, place.one_more(), counters, "verbose" if verbose else "one of several")

    try:
        workers.append(_Worker(settings, opened, counters, "verbose" if verbose else "the first"))
        workers += [start() for _ in range(1, settings.workers)]
        _watch(workers, told, counters, start, ready)
    finally:
        for worker in workers:
            worker.tell(signal.SIGTERM)
            worker.opened.close()
        place.close()
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
            worker.opened.close()  # also where something that it started has its output still
            workers[at] = start()
        time.sleep(0.05)


def _forget(process: int, counters: str) -> None:
    """Its counters go on counting; what was true only while it lived does not."""
    from prometheus_client import multiprocess

    untyped: Any = multiprocess
    with contextlib.suppress(OSError, ValueError):
        untyped.mark_process_dead(process, counters)
