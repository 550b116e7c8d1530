"""Stores are asked by a process of its own, which can be ended: see `store_child`.

Each call has a process to itself and leaves it to the next one.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import time
import weakref
from contextlib import suppress
from typing import IO, Any, cast

from cir_infer.errors import DeviceError, ImageError
from cir_infer.processes.children import child_command, child_environment, start_child
from cir_infer.processes.fork import PerProcess
from cir_infer.processes.turns import Token

__all__ = ["StoreFile", "ask"]

_SECONDS = {"list": 900.0, "status": 60.0, "open": 60.0, "read": 60.0, "part": 60.0}
"""For an answer, and as many more as its bytes take at the slowest."""
_SLOWEST = 50_000
"""Bytes of an object in a second."""
_MEMORY = 4 << 30
"""Bytes that an answer may take."""
_REMEDIES = {"list": "does it say without end that there is more?"}
_KEPT, _AT_ONCE = 4, 8

_idle: PerProcess[list[_Child]] = PerProcess(list)
_asking: dict[weakref.ref[Token], None] = {}
"""The calls that have a process; a call's end takes it out, however it ends."""


def ask(question: str, store: str, path: str, **more: Any) -> tuple[dict[str, Any], bytearray]:
    """The answer of a store and the bytes that come with it, see `store_child`.

    Args:
        question: "status", "list" or "read".
        store: its name.
        path: of an object or a folder in it, "" for all of it.
        more: of a "read" offset, size (None for the whole) and most.

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
    child = _leased()
    try:
        answer = child.ask(question, store=store, path=path, **more)
    except BaseException as error:
        _left(child, isinstance(error, _RefusedError))
        raise
    _left(child)
    return answer


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
        except BaseException as error:
            _left(self._child, isinstance(error, _RefusedError))
            raise

    def read_at(self, size: int, offset: int) -> bytearray:
        """Bytes; fewer at its end.

        Raises:
            OSError: they cannot be read.
        """
        return self._child.ask("part", size=size, offset=offset)[1]

    def close(self) -> None:
        """Leave the process to others."""
        _left(self._child)


class _RefusedError(OSError):
    """An answer that says why there is none; the process can be asked again."""


class _Child:
    """A process of `store_child`."""

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
        self.usable = True

    def ask(self, question: str, **more: Any) -> tuple[dict[str, Any], bytearray]:
        limits = {"seconds": _SECONDS[question], "memory": _MEMORY, "slowest": _SLOWEST}
        remedy = _REMEDIES.get(question, "see to the network and the store")
        asked = {"ask": question, **limits, "remedy": remedy, **more}
        self.usable = False
        try:
            self._questions.write(json.dumps(asked).encode() + b"\n")
            self._questions.flush()
            line = self._answers.readline()
            head: dict[str, Any]
            head = json.loads(line) if line.endswith(b"\n") else {"error": self._ended(), "errno": None}
            data = bytearray(head.get("bytes", 0))
            if data and self._answers.readinto(data) != len(data):  # type: ignore[attr-defined]
                head = {"error": self._ended(), "errno": None}
        except ValueError as error:  # a fork has closed its pipes
            raise OSError("what asks the store belongs to another process") from error
        if "error" not in head:
            self.usable = True
            return head, data
        self.usable = "bytes" in head
        number, said = head["errno"], head["error"]
        raise _RefusedError(said) if number is None else _RefusedError(number, said)

    def _ended(self) -> str:
        return f"the process that asks the store ended with code {self._process.wait()}"

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


def _left(child: _Child, usable: bool = True) -> None:
    idle = _idle.get()
    if usable and child.usable and len(idle) < _KEPT:
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
