"""What asks a store: `python -m cir_infer.inputs.store_child`, started by `store_asking`.

Only here is pyarrow asked. A store decides how many pages its listing has and how slowly it sends, and
pyarrow follows for as long as it goes on, where neither Ctrl-C nor another thread of Python reaches it. This
process ends itself instead, when a question has taken its time or memory, and when whoever asks is gone.

On stdin a line of JSON for each question, on stdout a line for each answer, {"bytes": how many follow it}, or
{"error": text, "errno": number or null}. `status` has an `entry` [name, folder, size, nanoseconds] or null;
what follows `list` are lines with such entries; what follows `read` are bytes of the object, unless there are
more than `most`: then there is their `size`. `open` has a `size`, and `part` reads of what is open.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cir_infer.errors import shown

__all__ = ["main"]

Question = Mapping[str, Any]
Answer = tuple[dict[str, Any], bytes]

_LOOKS = 0.1
"""Seconds between two looks at what a question has taken."""


class _Watch(threading.Thread):
    """Ends the process where one question takes more than it may."""

    def __init__(self, question: Question, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(daemon=True)
        self._until = time.monotonic() + question["seconds"]
        self._most, self._say, self._question = _memory() + question["memory"], say, question
        self._over, self._saying = threading.Event(), threading.Lock()

    def __enter__(self) -> _Watch:
        self.start()
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        with self._saying:
            self._over.set()

    def run(self) -> None:
        while not self._over.wait(_LOOKS):
            late = time.monotonic() > self._until
            if not (late or _memory() > self._most):
                continue
            with self._saying:
                if not self._over.is_set():
                    what = (
                        f"the store gave no full answer within {self._question['seconds']:,.0f} s"
                        if late
                        else f"the store's answer takes more than {self._question['memory'] >> 20:,} MiB"
                    )
                    self._say({"error": f"{what}; {self._question['remedy']}", "errno": None})
                    os._exit(1)

    def wait_for(self, size: int) -> None:
        """Bytes will come."""
        self._until += size / self._question["slowest"]


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
    """The stores that were asked, and the object that is open."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, str]] = {}
        self._open: Any = None

    def answer(self, question: Question, watch: _Watch) -> Answer:
        """Whatever pyarrow raises."""
        asked = question["ask"]
        if asked == "part":
            watch.wait_for(question["size"])
            return {}, self._open.read_at(question["size"], question["offset"])
        self._open = None
        system, path = self._place(question["store"], question["path"])
        if asked == "status":
            return {"entry": _entry(system.get_file_info(path))}, b""
        if asked == "list":
            return {}, self._listing(system, path)
        file = system.open_input_file(path)
        size = int(file.size())
        if asked == "open":
            self._open = file
            return {"size": size}, b""
        wanted = size if question["size"] is None else question["size"]
        if wanted > question["most"]:
            return {"size": wanted}, b""
        watch.wait_for(wanted)
        return {}, file.read_at(wanted, question["offset"])

    def _place(self, store: str, path: str) -> tuple[Any, str]:
        if store not in self._known:
            from pyarrow.fs import FileSystem

            system, base = FileSystem.from_uri(f"s3://{store}/")
            self._known[store] = system, base.strip("/")
        system, base = self._known[store]
        return system, f"{base}/{path}" if path else base

    def _listing(self, system: Any, path: str) -> bytes:
        from pyarrow.fs import FileSelector

        lines, waiting = [], system.get_file_info(FileSelector(path))
        while waiting:  # a folder may hold millions, which stand here once
            info = waiting.pop()
            # pyarrow tells a folder without a name as the one that it is in.
            named = info.path == f"{path}/{info.base_name}"
            if (entry := _entry(info) if named else ["", True, 0, 0]) is not None:
                lines.append(json.dumps(entry).encode() + b"\n")
        return b"".join(lines)


def _entry(info: Any) -> list[Any] | None:
    from pyarrow.fs import FileType

    if info.type == FileType.Directory:
        return [info.base_name, True, 0, 0]
    if info.type != FileType.File:
        return None
    return [info.base_name, False, int(info.size or 0), int(info.mtime_ns or 0)]


def _read(questions: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        questions.put(line)
    os._exit(0)  # whoever asked is gone, whatever is being done for it


def main() -> None:
    """Answer until stdin ends."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    def say(head: dict[str, Any]) -> None:
        write(json.dumps(head).encode() + b"\n")

    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(answers, rest) :]

    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions,), daemon=True).start()
    stores = _Stores()
    while True:
        question = json.loads(questions.get())
        try:
            import pyarrow.fs  # noqa: F401  (its time is not the store's)

            with _Watch(question, say) as watch:
                head, data = stores.answer(question, watch)
        except Exception as error:  # pyarrow answers what it cannot do with errors of many types
            number = error.errno if isinstance(error, OSError) else None
            said = os.strerror(number) if number is not None else shown(error, 300)
            if isinstance(error, MemoryError):
                number, said = errno.ENOMEM, "out of memory"
            head, data = {"error": said, "errno": number}, b""
        say({**head, "bytes": len(data)})
        write(data)


if __name__ == "__main__":
    main()
