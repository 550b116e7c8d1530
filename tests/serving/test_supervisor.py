"""The address of several workers: theirs for as long as the service runs."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from cir_infer.errors import CirError
from cir_infer.serving.server import listen
from cir_infer.serving.supervisor import _Place


def test_nobody_else_gets_the_address_while_no_worker_is_left() -> None:
    opened = listen("127.0.0.1", 0)
    port = opened.getsockname()[1]
    # What is left of connections, here and from runs before, keeps no worker away.
    client = socket.create_connection(("127.0.0.1", port), 60)
    opened.accept()[0].close()
    client.close()
    place = _Place(opened)
    second = place.one_more()
    second.listen()
    for worker in (opened, second):
        worker.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 60)
    with pytest.raises(CirError, match="cannot listen"):
        listen("127.0.0.1", port)
    with place.one_more() as again:
        again.listen()
        socket.create_connection(("127.0.0.1", port), 60).close()
    place.close()
    listen("127.0.0.1", port).close()
