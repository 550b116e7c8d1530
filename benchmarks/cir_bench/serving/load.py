"""A process that asks a service over HTTP, on connections that stay open, and says how long each answer took.

python -m cir_bench.serving.load < job.json > told.json
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cir_bench.timing import arrivals_at

__all__ = ["Job", "main", "raw_request"]

_LENGTH = re.compile(rb"\ncontent-length: *(\d+)\r", re.IGNORECASE)
_CLOSES = re.compile(rb"\nconnection: *close\r", re.IGNORECASE)


def raw_request(path: str, kind: str, body: bytes) -> bytes:
    """A request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Job:
    """What to ask.

    Attributes:
        port: on this machine.
        requests: asked in turn.
        clients: connections.
        seconds: for so long.
        rate: requests a second, arriving at random whether or not earlier ones are answered (an open loop);
            None lets each client ask again once it has its answer.
        seed: of the arrivals.
    """

    port: int
    requests: Sequence[bytes]
    clients: int
    seconds: float
    rate: float | None = None
    seed: int = 0

    def to_json(self) -> str:
        """For the process's standard input."""
        plain = [base64.b64encode(request).decode() for request in self.requests]
        return json.dumps({**vars(self), "requests": plain})

    @staticmethod
    def from_json(text: str) -> Job:
        """The inverse."""
        read = json.loads(text)
        read["requests"] = [base64.b64decode(request) for request in read["requests"]]
        return Job(**read)


class _Answers(asyncio.Protocol):
    """Reads answers, one at a time. asyncio's streams take the processor for twice as long."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._waiter: asyncio.Future[int] | None = None
        self._data = b""
        self._whole = 0  # bytes of the answer, once its head is there

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self._waiter = asyncio.get_running_loop().create_future()
        self._data, self._whole = b"", 0
        self.transport.write(request)
        return self._waiter

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._whole:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            found = _LENGTH.search(self._data, 0, end + 2)
            self._whole = end + 4 + (int(found[1]) if found else 0)
        if len(self._data) >= self._whole and self._waiter is not None and not self._waiter.done():
            if _CLOSES.search(self._data, 0, self._whole):
                self.transport.close()
            self._waiter.set_result(int(self._data[9:12]))

    def connection_lost(self, _: Exception | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(0)


class _Connection:
    """One connection, opened again when the service closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._answers: _Answers | None = None

    async def ask(self, request: bytes) -> int:
        """The status of the answer, which is read whole; 0 where there is none."""
        if self._answers is None or self._answers.transport.is_closing():
            loop = asyncio.get_running_loop()
            try:
                _, self._answers = await loop.create_connection(_Answers, "127.0.0.1", self._port)
            except OSError:
                return 0
        return await self._answers.ask(request)

    def close(self) -> None:
        if self._answers is not None:
            self._answers.transport.close()


async def _asked(job: Job) -> list[tuple[int, float, float]]:
    """(status, milliseconds, second of the run) of every request."""
    told: list[tuple[int, float, float]] = []
    begun = time.perf_counter()
    arrivals = None if job.rate is None else iter(arrivals_at(job.rate, job.seconds, job.seed).tolist())
    taken = 0

    async def client(at: int) -> None:
        nonlocal taken
        connection = _Connection(job.port)
        number = at
        while True:
            if arrivals is None:
                due = time.perf_counter() - begun
                if due > job.seconds:
                    break
            else:
                arrival = next(arrivals, None)
                if arrival is None:
                    break
                due = arrival
                pause = due - (time.perf_counter() - begun)
                if pause > 0:
                    await asyncio.sleep(pause)
            status = await connection.ask(job.requests[number % len(job.requests)])
            now = time.perf_counter() - begun
            # From when it was due, not from when a connection was free to carry it.
            told.append((status, 1000 * (now - due), now))
            number += job.clients
        connection.close()

    await asyncio.gather(*(client(at) for at in range(job.clients)))
    return told


def main() -> None:
    """Ask what standard input says."""
    job = Job.from_json(sys.stdin.read())
    begun = time.process_time()
    told: dict[str, Any] = {"told": asyncio.run(_asked(job)), "cpu": time.process_time() - begun}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
