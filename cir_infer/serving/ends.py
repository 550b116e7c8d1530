"""Work that is ended from outside: too late, or nobody wants it any more."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from functools import partial
from typing import TypeVar

from cir_infer.serving.deadlines import after

__all__ = ["Ends"]

T = TypeVar("T")


class Ends:
    """What can end some work of the task that makes this.

    `asyncio.wait_for` takes a task of its own for the work, which costs more than what some of it does.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._why: Exception | None = None
        self._over = False

    def now(self, why: Exception) -> None:
        """End the work, if it has not ended; `within` raises what is given."""
        if self._why is None and not self._over:
            self._why = why
            self._task.cancel()

    async def within(self, seconds: float, work: Awaitable[T], late: Exception) -> T:
        """What work gives.

        Raises:
            Exception: `late` after so many seconds, or what `now` was given.
        """
        timer = after(asyncio.get_running_loop(), seconds, partial(self.now, late))
        try:
            return await work
        except asyncio.CancelledError:
            if self._why is None:
                raise
            if sys.version_info >= (3, 11):
                self._task.uncancel()
            raise self._why from None
        finally:
            self._over = True
            timer.cancel()
