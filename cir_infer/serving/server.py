"""One process that serves: the event loop, signals, the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from cir_infer.errors import CirError, UsageError, shown
from cir_infer.processes.threads import Threads
from cir_infer.serving.app import make_app
from cir_infer.serving.connections import LARGEST_HEAD, make_protocol
from cir_infer.serving.service import Service
from cir_infer.serving.settings import Settings

__all__ = ["address_of", "listen", "make_server", "serve"]

_BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to.

    Raises:
        UsageError: the address is none of this machine's.
        CirError: something else listens there, or the port needs rights.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {shown(host)} is no address ({shown(error)})") from error
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        raise CirError(
            f"cannot listen on {shown(host)} port {port} ({error.strerror or error}); choose another with "
            "--host and --port"
        ) from error
    return opened


def address_of(opened: socket.socket) -> str:
    """What to type into a browser."""
    host, port = opened.getsockname()[:2]
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(settings: Settings, opened: socket.socket, ready: Callable[[Service], None]) -> None:
    """Answer on a socket until SIGTERM or SIGINT; SIGHUP opens bundle and gallery again.

    What was accepted is answered before this returns.

    Args:
        settings: what to serve.
        opened: the socket; closed at the end.
        ready: called when requests are answered.

    Raises:
        CirError: bundle or gallery cannot be opened.
        KeyboardInterrupt: it was SIGINT.
    """
    # What strangers send is no news: these warn of each request or form that is none.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.getLogger("cir_infer.serving.access").setLevel(logging.INFO)
    early: list[int] = []
    if hasattr(signal, "SIGHUP"):  # what was opened before it came may be the old bundle
        signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    service = Service(settings)
    reloading = Threads(1)

    def begun() -> None:
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, reloading.submit, _reload, service)
        if early:
            reloading.submit(_reload, service)
        _spare_what_is_there()
        # The socket is served right after this; connections that come before wait in its backlog.
        loop.call_soon(ready, service)

    server = make_server(service, begun)
    # uvicorn raises the signal once more when it has ended; a stop that was asked for is no failure.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[opened])
    finally:
        signal.signal(signal.SIGTERM, before)
        reloading.close()


def _reload(service: Service) -> None:
    service.reload()
    _spare_what_is_there()


def _spare_what_is_there() -> None:
    """Let the garbage collector leave alone what lives as long as the service, with which nobody can wait.

    Modules and schemas are some 300,000 objects: looking through them holds every request up for a while.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _is_news(record: logging.LogRecord) -> bool:
    """Answers that could not be sent, because what came turned out to be no HTTP, are none."""
    return "without completing response" not in record.getMessage()


def make_server(service: Service, on_start: Callable[[], None] | None = None) -> Any:
    """A `uvicorn.Server` over a service, which it closes at its end.

    Args:
        service: what answers.
        on_start: called in the event loop when it begins.

    Raises:
        UsageError: the file of API keys cannot be used; the service is closed then.
    """
    import uvicorn

    from cir_infer.serving.stopping import Server

    settings = service.settings
    try:
        app = make_app(service, on_start)
    except BaseException:
        service.close()
        raise
    config = uvicorn.Config(
        app,
        http=make_protocol(settings.read_timeout, app.refuse, app.unreadable),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=4 * settings.concurrency + 64,
        timeout_keep_alive=max(5, int(settings.read_timeout)),
        timeout_graceful_shutdown=int(settings.drain),
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )
    return Server(config)
