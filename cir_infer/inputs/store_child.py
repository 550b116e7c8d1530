"""What asks a store: `python -m cir_infer.inputs.store_child`, started by `store_asking`.

Only here is pyarrow asked. A store decides how many pages its listing has and how slowly it sends, and
pyarrow follows for as long as it goes on, where neither Ctrl-C nor another thread of Python reaches it. Here
each question has a thread, and is answered with an error when it has taken its time; the process ends itself
when its memory is taken, and when whoever asks is gone.

On stdin a line of JSON for each question, as many at once as whoever asks likes; on stdout, in the order of
the questions, a line for each answer, {"bytes": how many follow it}, or {"error": text, "errno": number or
null}, with "late": true where a thread hangs, so that the process should be asked no more. `status` has an
`entry` [name, folder, size, nanoseconds] or null; what follows `list` are lines with such entries, and what
follows `read` are bytes of the object; of more than `most` nothing follows, and there is how `many` they are
or their `size`. `open` has a `size`, and `part` reads of what is open.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cir_infer.errors import shown

__all__ = ["main"]

Question = Mapping[str, Any]
Answer = tuple[dict[str, Any], bytes | bytearray]

_LOOKS = 0.1
"""Seconds between two looks at what questions have taken."""


_MARKS = (0xA7, 0x58)


class _Asked:
    """A question, and its answer once there is one.

    Attributes:
        question: it.
        until: when it has taken its time.
        answer: None before there is one.
        taken: bytes that it was given room for.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.until = math.inf
        self.answer: Answer | None = None
        self.taken = 0


class _Turns:
    """The questions that were not told the answer of, in their order, and what they take."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._asked: deque[_Asked] = deque()
        self._before = 0

    def ask(self, question: Question) -> _Asked:
        """Put a question last; its time begins."""
        asked = _Asked(question)
        with self._changed:
            if not self._asked:
                self._before = _memory()
            asked.until = time.monotonic() + question["seconds"]
            self._asked.append(asked)
            self._changed.notify_all()
        return asked

    def answer(self, asked: _Asked, answer: Answer) -> None:
        """Answer a question; what is said first holds."""
        with self._changed:
            if asked.answer is None:
                asked.answer = answer
                self._changed.notify_all()

    def wait_for(self, asked: _Asked, size: int) -> None:
        """Bytes will come: wait for room for them, which is none of the store's time, and give them theirs.

        Raises:
            TimeoutError: it came too late.
        """
        with self._changed:
            if asked.answer is not None:
                raise TimeoutError
            room = asked.question["room"]
            left, asked.until = asked.until - time.monotonic(), math.inf
            while self._asked[0] is not asked and sum(one.taken for one in self._asked) + size > room:
                self._changed.wait()
            asked.taken = size
            asked.until = time.monotonic() + left + size / asked.question["slowest"]

    def next(self) -> Answer:
        """The answer to the first question, which is the first until it has been told."""
        with self._changed:
            while not self._asked or self._asked[0].answer is None:
                self._changed.wait()
            return self._asked[0].answer

    def told(self) -> None:
        """Let the next question be the first."""
        with self._changed:
            self._asked.popleft()
            self._changed.notify_all()

    def watch(self) -> None:
        """Answer what is late, and end the process where questions take more memory than they may."""
        while True:
            with self._changed:
                while not self._asked:
                    self._changed.wait()
                now = time.monotonic()
                for asked in self._asked:
                    if now > asked.until:
                        what = f"the store gave no full answer within {asked.question['seconds']:,.0f} s"
                        self._give_up(asked, what, "late")
                most = self._asked[0].question["memory"]
                working = any(asked.answer is None for asked in self._asked)
                if working and _memory() - self._before > most:
                    if len(self._asked) > 1:  # whoever asks finds out which one it was
                        os._exit(1)
                    what = f"the store's answer takes more than {most >> 20:,} MiB"
                    self._give_up(self._asked[0], what, "last")
            time.sleep(_LOOKS)

    def _give_up(self, asked: _Asked, what: str, how: str) -> None:
        self.answer(asked, ({"error": f"{what}; {asked.question['remedy']}", "errno": None, how: True}, b""))


def _memory() -> int:
    """Bytes that this process has in memory."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


class _Stores:
    """The stores that were asked, and the object that is open, as often as it is read at once."""

    def __init__(self, turns: _Turns) -> None:
        self._turns = turns
        self._known: dict[str, tuple[Any, str]] = {}
        self._knowing = threading.Lock()
        self._open: tuple[Any, str] | None = None
        self._files: list[Any] = []

    def work(self, asked: _Asked) -> None:
        """Answer a question."""
        try:
            answer = self._answer(asked)
        except Exception as error:  # pyarrow answers what it cannot do with errors of many types
            number = error.errno if isinstance(error, OSError) else None
            said = os.strerror(number) if number is not None else shown(error, 300)
            if isinstance(error, MemoryError):
                number, said = errno.ENOMEM, "out of memory"
            answer = {"error": said, "errno": number}, b""
        self._turns.answer(asked, answer)

    def _answer(self, asked: _Asked) -> Answer:
        question = asked.question
        kind = question["ask"]
        if kind == "part":
            self._turns.wait_for(asked, question["size"])
            return {}, self._part(question["size"], question["offset"])
        self._open, self._files = None, []
        system, path = self._place(question["store"], question["path"])
        if kind == "status":
            return {"entry": _entry(system.get_file_info(path))}, b""
        if kind == "list":
            lines = self._listing(system, path)
            many = question["most"] is not None and len(lines) > question["most"]
            return ({"many": len(lines)}, b"") if many else ({}, b"".join(lines))
        file = system.open_input_file(path)
        size = int(file.size())
        if kind == "open":
            self._open, self._files = (system, path), [file]
            return {"size": size}, b""
        wanted = size if question["size"] is None else question["size"]
        if wanted > question["most"]:
            return {"size": wanted}, b""
        self._turns.wait_for(asked, wanted)
        return {}, _bytes(file, wanted, question["offset"])

    def _part(self, size: int, offset: int) -> bytearray:
        """Bytes of what is open. A file has one place, so parts that are read at once have a file each."""
        assert self._open is not None
        system, path = self._open
        files = self._files
        try:
            file = files.pop()
        except IndexError:
            file = system.open_input_file(path)
        data = _bytes(file, size, offset)
        files.append(file)
        return data

    def _place(self, store: str, path: str) -> tuple[Any, str]:
        with self._knowing:
            if store not in self._known:
                from pyarrow.fs import FileSystem

                system, base = FileSystem.from_uri(f"s3://{store}/")
                self._known[store] = system, base.strip("/")
            system, base = self._known[store]
        return system, f"{base}/{path}" if path else base

    def _listing(self, system: Any, path: str) -> list[bytes]:
        from pyarrow.fs import FileSelector

        lines: list[bytes] = []
        waiting = system.get_file_info(FileSelector(path))
        while waiting:  # a folder may hold millions, which stand here once
            info = waiting.pop()
            # pyarrow tells a folder without a name as the one that it is in.
            named = info.path == f"{path}/{info.base_name}"
            if (entry := _entry(info) if named else ["", True, 0, 0]) is not None:
                lines.append(json.dumps(entry).encode() + b"\n")
        return lines


def _bytes(file: Any, size: int, offset: int) -> bytearray:
    """Bytes of an object, fewer at its end.

    However few a store sends, pyarrow takes them for all that were asked for, and what was in memory for the
    rest. So they are read over a mark, and over another one where the last of them is the mark.

    Raises:
        OSError: the store sent fewer; the object may have become shorter since its size was asked for.
    """
    data = bytearray(max(0, min(size, int(file.size()) - offset)))
    for mark in _MARKS if data else ():
        data[-1] = mark
        file.seek(offset)
        if file.readinto(data) == len(data) and data[-1] != mark:
            return data
    if data:
        raise OSError(f"the store sent fewer than {len(data):,} bytes; was the object written meanwhile?")
    return data


def _entry(info: Any) -> list[Any] | None:
    from pyarrow.fs import FileType

    if info.type == FileType.Directory:
        return [info.base_name, True, 0, 0]
    if info.type != FileType.File:
        return None
    return [info.base_name, False, int(info.size or 0), int(info.mtime_ns or 0)]


def _tell(turns: _Turns, answers: int) -> None:
    """Write the answers, each when its turn has come."""
    while True:
        head, data = turns.next()
        for part in (json.dumps({**head, "bytes": len(data)}).encode() + b"\n", data):
            rest = memoryview(part)
            while rest:
                rest = rest[os.write(answers, rest) :]
        if "last" in head:
            os._exit(1)
        del data, part, rest  # they may be large, and the next answer be long in coming
        turns.told()


def main() -> None:
    """Answer until stdin ends."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    with suppress(Exception):  # whoever needs it says so
        import pyarrow.fs  # noqa: F401  (its time is not the store's)
    turns = _Turns()
    stores = _Stores(turns)
    for work in (lambda: _tell(turns, answers), turns.watch):
        threading.Thread(target=work, daemon=True).start()
    for line in sys.stdin.buffer:
        asked = turns.ask(json.loads(line))
        try:
            threading.Thread(target=stores.work, args=(asked,), daemon=True).start()
        except RuntimeError as error:  # there are no more threads
            turns.answer(asked, ({"error": f"the store cannot be asked: {error}", "errno": None}, b""))
    os._exit(0)  # whoever asked is gone, whatever is being done for it


if __name__ == "__main__":
    main()
