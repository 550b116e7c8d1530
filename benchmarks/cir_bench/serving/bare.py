"""What HTTP costs by itself: uvicorn over httptools with a handler that gives the same bytes to everybody.

python -m cir_bench.serving.bare answer.bin
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cir_bench.serving.listening import serve

__all__ = ["main"]


def main(file: str) -> None:
    """Serve a whole answer, its head and its body, as a service gave it.

    Args:
        file: holds it.
    """
    head, _, body = Path(file).read_bytes().partition(b"\r\n\r\n")
    headers: list[Any] = [line.partition(b": ")[::2] for line in head.split(b"\r\n")[1:]]
    headers = [(name, value) for name, value in headers if name != b"date"]  # which uvicorn adds
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    rest = {"type": "http.response.body", "body": body}

    async def app(_: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await send(start)
        await send(rest)

    serve(
        app,
        http="httptools",
        loop="asyncio",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
