"""A server that stops without resetting connections which the system has taken for it."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Sequence

import uvicorn

__all__ = ["Server", "all_taken"]

_PATIENCE = 1.0
_TURNS = 8
"""Of the event loop: from a connection that was accepted to the head of a request that had come with it."""


class Server(uvicorn.Server):
    """uvicorn's, which closes its sockets once nobody waits behind them.

    A client has a connection as soon as the system took it, and asks. Where the socket is closed before the
    event loop has looked for it, the system resets what is there.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        await all_taken(sockets or [])
        await super().shutdown(sockets)


async def all_taken(sockets: Sequence[socket.socket]) -> None:
    """Let the event loop go on until it has taken the connections of sockets, and read what came with them.

    Args:
        sockets: that the event loop serves. Where connections come without end, it is left at that.
    """
    loop = asyncio.get_running_loop()
    until, calm = loop.time() + _PATIENCE, 0
    with selectors.DefaultSelector() as waiting:
        for opened in sockets:
            waiting.register(opened, selectors.EVENT_READ)
        while calm < _TURNS and loop.time() < until:
            await asyncio.sleep(0)
            calm = 0 if waiting.select(0) else calm + 1
