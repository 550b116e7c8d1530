"""Stores are asked by a process of its own, which can be ended: see `store_child`.

Each call has a process to itself, or asks it several things at once (`Line`), and leaves it to the next one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import IO, Any, TypeAlias, cast

from cir_infer.errors import DeviceError, ImageError
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.processes.fork import PerProcess
from cir_infer.processes.turns import Token

__all__ = ["AHEAD", "Answer", "Later", "Line", "StoreFile", "ask", "longest_read"]

_SECONDS = {"list": 900.0, "status": 60.0, "open": 60.0, "read": 60.0, "part": 60.0}
"""For an answer, and as many more as its bytes take at the slowest."""
_SLOWEST = 50_000
"""Bytes of an object in a second."""
_MEMORY = 4 << 30
"""Bytes that an answer may take."""
_ROOM = 64 << 20
"""Bytes of objects that stand in the process before their turn; what is next has as many as it needs."""
_REMEDIES = {"list": "does it say without end that there is more?"}
_KEPT, _AT_ONCE = 4, 8
AHEAD = 32
"""Questions that one process is asked at once: what is small takes two requests, each as long as the way."""

Answer: TypeAlias = tuple[dict[str, Any], bytearray]

_idle: PerProcess[list[_Child]] = PerProcess(list)
_asking: dict[weakref.ref[Token], None] = {}
"""The calls that have a process; a call's end takes it out, however it ends."""


def longest_read(size: int) -> float:
    """Seconds after which a whole object of so many bytes is no longer waited for."""
    return _SECONDS["read"] + size / _SLOWEST


def ask(question: str, store: str, path: str, **more: Any) -> Answer:
    """The answer of a store and the bytes that come with it, see `store_child`.

    Args:
        question: "status", "list" or "read".
        store: its name.
        path: of an object or a folder in it, "" for all of it.
        more: of a "read" offset, size (None for the whole) and most, of a "list" most (None for all).

    Raises:
        OSError: there is none.
        ImageError: this program has no Python to start.
    """
    token = Token()
    reference = weakref.ref(token, lambda gone: _asking.pop(gone, None))
    while True:
        _asking[reference] = None
        if len(_asking) <= _AT_ONCE:
            break
        del _asking[reference]
        time.sleep(0.002)
    try:
        child = _leased()
        try:
            return child.ask(question, store=store, path=path, **more)
        finally:
            _left(child)
    finally:
        _asking.pop(reference, None)  # an error that somebody keeps has the token


class StoreFile:
    """An object that is open, with a process to itself.

    Raises:
        OSError, ImageError: see `ask`.

    Attributes:
        size: bytes.
    """

    def __init__(self, store: str, path: str) -> None:
        self._child = _leased()
        try:
            self.size = int(self._child.ask("open", store=store, path=path)[0]["size"])
        except BaseException:
            _left(self._child)
            raise

    def ask(self, size: int, offset: int) -> None:
        """Ask for bytes before those asked for earlier are received.

        Raises:
            OSError: the process is gone.
        """
        self._child.send("part", size=size, offset=offset)

    def receive(self) -> bytearray:
        """The bytes that were asked for first of those that were not received; fewer at its end.

        Raises:
            OSError: they cannot be read.
        """
        return self._child.receive()[1]

    def close(self) -> None:
        """Leave the process to others, or end it where something was asked for in vain."""
        _left(self._child)


class Later:
    """An answer to come, see `Line`.

    Attributes:
        question: what was asked.
        more: what was said with it.
        answer: None before it has come.
        error: in its place.
    """

    def __init__(self, line: Line, question: str, more: dict[str, Any]) -> None:
        self.question, self.more = question, more
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self._line = line

    @property
    def known(self) -> bool:
        """Whether it has come."""
        return self.answer is not None or self.error is not None

    def result(self) -> Answer:
        """Wait for it.

        Raises:
            OSError, ImageError: see `ask`.
        """
        while not self.known:
            self._line.receive()
        if self.error is not None:
            raise self.error
        assert self.answer is not None
        return self.answer


class Line:
    """Questions that are asked before earlier ones are answered: `AHEAD` at once, by one process.

    It has a process while there are questions. What brings that down costs its own answer: all that was asked
    is asked again, one by one.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._asked: deque[Later] = deque()
        self._waiting: deque[Later] = deque()
        self._alone = 0

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        for later in (*self._asked, *self._waiting):
            later.error = OSError("nobody waited for the answer")
        self._waiting.clear()
        self._leave()

    def ask(self, question: str, store: str, path: str, **more: Any) -> Later:
        """Ask; see `ask`, which waits for the answer."""
        later = Later(self, question, {"store": store, "path": path, **more})
        self._waiting.append(later)
        self._send()
        return later

    def receive(self) -> None:
        """Wait for the next answer."""
        self._send()
        if not self._asked:
            return
        assert self._child is not None
        later = self._asked[0]
        try:
            later.answer = self._child.receive()
        except _EndedError as error:
            self._lost(error)
            return
        except OSError as error:
            later.error = error
        self._asked.popleft()
        self._alone = max(0, self._alone - 1)
        if not self._asked:
            self._leave()
        self._send()

    def _send(self) -> None:
        while self._waiting and len(self._asked) < (1 if self._alone else AHEAD):
            if self._child is not None and not self._child.sound:
                if self._asked:
                    return  # what hangs is ended when the others have been answered
                self._leave()
            later = self._waiting.popleft()
            try:
                self._child = self._child or _leased()
            except (OSError, ImageError) as error:
                later.error = error
                continue
            self._asked.append(later)
            try:
                self._child.send(later.question, **later.more)
            except _EndedError as error:
                self._lost(error)

    def _lost(self, error: _EndedError) -> None:
        """Blame what was asked alone; of several ask again, one by one."""
        asked = list(self._asked)
        self._leave()
        if len(asked) == 1:
            asked[0].error = error
            self._alone = max(0, self._alone - 1)
        else:
            self._waiting.extendleft(reversed(asked))
            self._alone = len(asked)

    def _leave(self) -> None:
        child, self._child = self._child, None
        self._asked.clear()
        if child is not None:
            _left(child)


class _RefusedError(OSError):
    """An answer that says why there is none; the process can be asked again."""


class _EndedError(OSError):
    """The process is gone, or says what makes no sense."""


class _Child:
    """A process of `store_child`.

    Attributes:
        settings: with which it was started.
        asked: questions whose answers it has not given.
        sound: whether it can be asked more.
    """

    def __init__(self) -> None:
        self.settings = _settings()
        try:
            command = child_command("cir_infer.inputs.store_child")
        except DeviceError as error:
            raise ImageError(
                "a store is asked by a process of its own, and this program was frozen or embedded and has "
                "no Python to start one; copy what it needs to this machine"
            ) from error
        self._process = start_child(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            # An interrupt from the terminal is for the parent alone.
            start_new_session=True,
        )
        self._questions = cast(IO[bytes], self._process.stdin)
        self._answers = cast(IO[bytes], self._process.stdout)
        self.asked, self.sound = 0, True

    def ask(self, question: str, **more: Any) -> Answer:
        self.send(question, **more)
        return self.receive()

    def send(self, question: str, **more: Any) -> None:
        limits = {
            "seconds": _SECONDS[question],
            "slowest": _SLOWEST,
            "memory": _MEMORY,
            "room": _ROOM,
        }
        remedy = _REMEDIES.get(question, "see to the network and the store")
        asked = {"ask": question, **limits, "remedy": remedy, **more}
        self.asked += 1
        try:
            self._questions.write(json.dumps(asked).encode() + b"\n")
            self._questions.flush()
        except (OSError, ValueError) as error:
            raise self._ended(error) from error

    def receive(self) -> Answer:
        """The answer to the first question that has none."""
        try:
            line = self._answers.readline()
            if not line.endswith(b"\n"):
                raise self._ended()
            head: dict[str, Any] = json.loads(line)
            data = bytearray(head["bytes"])
            if data and self._answers.readinto(data) != len(data):  # type: ignore[attr-defined]
                raise self._ended()
        except ValueError as error:
            raise self._ended(error) from error
        self.asked -= 1
        self.sound = self.sound and not ("late" in head or "last" in head)
        if "error" not in head:
            return head, data
        number, said = head["errno"], head["error"]
        raise _RefusedError(said) if number is None else _RefusedError(number, said)

    def _ended(self, error: Exception | None = None) -> _EndedError:
        self.sound = False
        if isinstance(error, ValueError):  # a fork has closed its pipes
            return _EndedError("what asks the store belongs to another process")
        return _EndedError(f"the process that asks the store ended with code {self._process.wait()}")

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        for pipe in (self._questions, self._answers):
            with suppress(OSError, ValueError):
                pipe.close()
        self._process.wait()


def _leased() -> _Child:
    idle, now = _idle.get(), _settings()
    while True:
        try:
            child = idle.pop()
        except IndexError:
            return _Child()
        if child.settings == now:
            return child
        child.close()  # the machine says otherwise where the store is, or who asks


def _left(child: _Child) -> None:
    """Leave a process to others, or end it, where an answer is on its way or it is of no more use."""
    idle = _idle.get()
    if child.sound and not child.asked and len(idle) < _KEPT:
        idle.append(child)
    else:
        child.close()


def _settings() -> dict[str, str | None]:
    """What the environment says of stores and of the way to them, whoever changes it meanwhile."""
    names = (name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy"))
    return {name: os.environ.get(name) for name in names}


@atexit.register
def _end() -> None:
    for child in _idle.drop() or ():
        child.close()
