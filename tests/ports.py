"""A port for programs of others, which neither choose one nor say which."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["held_port"]


@contextmanager
def held_port() -> Iterator[int]:
    """A port of this machine that is bound and not listened on meanwhile, so that nobody else is given it.

    Who listens there must do so with SO_REUSEPORT, as Triton (`--reuse-http-port`) and Ray Serve do.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
