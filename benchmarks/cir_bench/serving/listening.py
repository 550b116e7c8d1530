"""A handler to compare with, listening where there is room, which it says."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ["serve"]


def serve(app: Any, **settings: Any) -> None:
    """Serve on this machine, on a port that the system chooses and the first line on stdout names.

    Args:
        app: as ASGI has it.
        settings: of `uvicorn.Config`.
    """
    import uvicorn

    with socket.create_server(("127.0.0.1", 0), backlog=2048) as opened:
        print(opened.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[opened])
