"""Connections whose requests have to arrive: who sends one byte a minute does not keep a place."""

from __future__ import annotations

from typing import Any

__all__ = ["timed"]


class _Timed:
    """Part of a protocol of uvicorn's: closes a connection whose request's head does not come in time."""

    seconds: float
    _head: Any = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._head is None and not self._busy():
            self._wait()
        super().data_received(data)  # type: ignore[misc]
        if self._busy():
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)  # type: ignore[misc]

    def _busy(self) -> bool:
        """Whether a request's head is here and its answer is not complete."""
        cycle = getattr(self, "cycle", None)
        return cycle is not None and not cycle.response_complete

    def _wait(self) -> None:
        loop: Any = getattr(self, "loop")  # noqa: B009 - the other class has it
        self._head = loop.call_later(self.seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        transport: Any = getattr(self, "transport")  # noqa: B009
        if not self._busy() and not transport.is_closing():
            transport.close()


def timed(protocol: type[Any], seconds: float) -> type[Any]:
    """A protocol of uvicorn's that waits so long for the head of a request."""
    return type("TimedProtocol", (_Timed, protocol), {"seconds": seconds})
