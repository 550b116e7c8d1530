"""Python's garbage collector kept still, e.g. while a capture goes on, or imports.

It runs wherever objects are made, and what it finds may hold memory of the GPU: to free that in the thread
that captures is refused, the capture is lost, and the memory as well. Imports make objects by the ten
thousand, hardly any of them garbage, and looking through them again and again takes a tenth of their time.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator

from cir_infer.processes.turns import Claim, Token, Turn

__all__ = ["collector_paused"]

# Claims and no count: what an interrupt or a fork has cut off would leave the collector still for ever.
_turn = Turn()
_pauses: list[Claim] = []
_was_enabled: list[bool] = []
"""Whether it ran before the first pause; empty where there is none."""


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic collection inside; threads may overlap, and the last one to leave lets it go on."""
    token = Token()
    claim = Claim(token)
    try:
        _turn.take(_pause, claim)
        yield
    finally:
        claim.over = True
        _turn.take(_go_on)


def _pause(claim: Claim) -> None:
    if not _was_enabled:
        _was_enabled.append(gc.isenabled())
    _pauses.append(claim)
    gc.disable()


def _go_on() -> None:
    _pauses[:] = [pause for pause in _pauses if pause.held]
    if not _pauses and _was_enabled:
        if _was_enabled[0]:
            gc.enable()
        _was_enabled.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_go_on)
