"""A worker of `cir-serve --workers`, which `supervisor` starts with a socket to answer on."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time

from cir_infer.console.common import complain, say_on_stderr
from cir_infer.errors import CirError
from cir_infer.serving.server import serve
from cir_infer.serving.settings import Settings

__all__ = ["main"]


def main(settings: str, descriptor: str, verbosity: str, parent: str) -> int:
    """Serve until SIGTERM, or until the parent is gone."""
    sys.argv[0] = "cir-serve"  # by which name it complains
    say_on_stderr("cir-serve", verbosity == "verbose")
    log = logging.getLogger("cir_infer")
    level = log.level
    if verbosity == "one of several":  # of what it opens the first says what there is to say
        log.setLevel(logging.ERROR)
    # Ctrl-C reaches the whole group; the parent says what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        # Told, and not asked of the system: the parent may be gone before this begins.
        while os.getppid() == int(parent):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    def ready(*_: object) -> None:
        log.setLevel(level)
        print("ready", flush=True)

    threading.Thread(target=watch, daemon=True).start()
    try:
        serve(Settings.from_json(settings), socket.socket(fileno=int(descriptor)), ready)
    except CirError as error:
        complain(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
