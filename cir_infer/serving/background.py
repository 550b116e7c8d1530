"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeAlias, TypeVar

from cir_infer.processes.threads import Threads

__all__ = ["Result", "deliver", "deliver_all", "in_thread"]

T = TypeVar("T")
P = ParamSpec("P")
Result: TypeAlias = "tuple[asyncio.Future[Any], Any, BaseException | None]"
"""A future, its value, and the error in the value's place."""


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
    deliver_all(loop, [(future, value, error)])


def deliver_all(
    loop: asyncio.AbstractEventLoop,
    results: Sequence[Result],
) -> None:
    """`deliver` of several at once, which wakes the loop once."""

    def settle() -> None:
        for future, value, error in results:
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has ended
        if not loop.is_closed():
            raise
