"""Whether the head of a Ray cluster is there, and how a program outlives it. Needs the extra `[ray]`.

Ray ends every process of a cluster whose head has been away for a minute, without an exception that could be
caught. A program that asks shards shall live, and its queries fail with a remedy. So it leaves the cluster
before that: here a thread looks whether the head's port takes connections, which a busy head does too.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cir_infer.errors import ShardError, shown
from cir_infer.processes.turns import Claim, Token

__all__ = ["Membership", "check_head", "head_of"]

_LOOK, _GONE = 2.0, 30.0
"""Seconds between two looks, and after which a head that is away is given up. Ray waits 60."""
_ENDING, _PAUSE = 15.0, 0.02
_ANSWER = 2.0
_PLACE = re.compile(r"(.+):(\d{1,5})")


def head_of(address: str) -> tuple[str, int] | None:
    """Host and port of the head that an address means, as far as it can be told without Ray.

    Args:
        address: as `ray.init` takes it.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        with suppress(OSError):
            address = address or (_scratch() / "ray_current_cluster").read_text(errors="replace")
    found = _PLACE.fullmatch(address.strip())
    return None if found is None or "/" in found[1] else (found[1].strip("[]"), int(found[2]))


def _scratch() -> Path:
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"


def check_head(place: tuple[str, int]) -> None:
    """Make sure that there is a head.

    Raises:
        ShardError: nobody takes connections there.
    """
    try:
        socket.create_connection(place, timeout=_ANSWER).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ShardError(
            f"the head of Ray's cluster, {place[0]}:{place[1]}, is not there ({shown(error)}); start it "
            "(`ray start --head`), then the actors (`cir-cluster create`): galleries are on the disk, and "
            "nothing of them is lost"
        ) from error


class Membership:
    """This process in a Ray cluster that it joined. Threads may share one.

    Args:
        place: of the head.
        leave: leaves the cluster.

    Attributes:
        gone: why it was left, None while it was not.
    """

    def __init__(self, place: tuple[str, int], leave: Callable[[], Any]) -> None:
        self._place, self._leave = place, leave
        self._calls: list[Claim] = []  # and no condition, which an interrupt would leave locked
        self.gone: ShardError | None = None
        self._ended = False
        threading.Thread(target=self._watch, name="cir-infer Ray head", daemon=True).start()

    def check(self) -> None:
        """Make sure that the cluster was not left, and has its head.

        Raises:
            ShardError: it was, or has none.
        """
        self.check_left()
        check_head(self._place)

    def check_left(self) -> None:
        """Make sure that the cluster was not left.

        Raises:
            ShardError: it was.
        """
        if self.gone is not None:
            raise ShardError(str(self.gone))

    @contextmanager
    def call(self) -> Iterator[None]:
        """Something that is asked of the cluster, which is not left meanwhile; it looks at `gone` itself.

        Raises:
            ShardError: the cluster was left.
        """
        token = Token()
        claim = Claim(token)
        self._calls.append(claim)  # before the look: who leaves looks the other way round
        try:
            self.check_left()
            yield
        finally:
            claim.over = True
            with suppress(ValueError):
                self._calls.remove(claim)

    def end(self) -> None:
        """Look no more: the process has left by itself."""
        self._ended = True

    def _watch(self) -> None:
        there = time.monotonic()
        while not self._ended:
            time.sleep(_LOOK)
            try:
                check_head(self._place)
                there = time.monotonic()
            except ShardError as error:
                if time.monotonic() - there < _GONE or self._ended:
                    continue
                self.gone = error
                until = time.monotonic() + _ENDING
                while any(call.held for call in list(self._calls)) and time.monotonic() < until:
                    time.sleep(_PAUSE)
                with suppress(Exception):
                    self._leave()
                return
