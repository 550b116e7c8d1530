"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from cir_infer.processes.threads import Threads

__all__ = ["deliver", "in_thread"]

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(threads: Threads, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Have blocking work done by threads. If the caller is cancelled, work that has not begun is not done."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        if future.cancelled():
            return
        try:
            value = work(*args, **kwargs)
        except Exception as error:
            deliver(loop, future, None, error)
        except BaseException as error:
            deliver(loop, future, None, RuntimeError(f"a thread was ended by {type(error).__name__}"))
            raise
        else:
            deliver(loop, future, value, None)

    task = threads.submit(run)
    try:
        return await future
    except asyncio.CancelledError:
        task.cancel()
        raise


def deliver(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], value: Any, error: BaseException | None
) -> None:
    """Give a future of an event loop its result, from any thread; nobody may want it any more."""

    def settle() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has ended
        if not loop.is_closed():
            raise
