"""A stop: who has a connection is answered, and nobody gets one that nobody serves."""

from __future__ import annotations

import asyncio
import socket

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from cir_infer.serving.stopping import all_taken


class Shout(asyncio.Protocol):
    """Answers in capitals."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data.upper())


def test_connections_that_wait_behind_a_socket_are_taken_before_it_is_closed() -> None:
    async def scene() -> list[bytes]:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0), backlog=64) as opened:
            opened.setblocking(False)
            server = await loop.create_server(Shout, sock=opened)
            # The event loop sees none of these before it is asked to stop.
            clients = [socket.create_connection(opened.getsockname(), 60) for _ in range(20)]
            for client in clients:
                client.sendall(b"ask")
            await all_taken([opened])
            server.close()
        said = [await loop.run_in_executor(None, client.recv, 100) for client in clients]
        for client in clients:
            client.close()
        return said

    assert asyncio.run(scene()) == [b"ASK"] * 20
