"""Work that is ended from outside: who ends it is told, and nothing is ended that was over."""

from __future__ import annotations

import asyncio

import pytest

from cir_infer.serving.ends import Ends
from cir_infer.serving.problems import Problem

LATE, GONE = Problem("timeout", "late"), Problem("cancelled", "gone")


async def for_ever(begun: asyncio.Event, cleaned: list[bool]) -> None:
    try:
        begun.set()
        await asyncio.get_running_loop().create_future()
    finally:
        cleaned.append(True)


def test_what_is_in_time_is_given() -> None:
    async def scene() -> int:
        return await Ends().within(60, asyncio.sleep(0, 7), LATE)

    assert asyncio.run(scene()) == 7


def test_what_is_late_is_cancelled_and_the_task_goes_on() -> None:
    async def scene() -> list[bool]:
        cleaned: list[bool] = []
        with pytest.raises(Problem, match="late"):
            await Ends().within(0, for_ever(asyncio.Event(), cleaned), LATE)
        await asyncio.sleep(0)  # a cancellation that was left over would come now
        assert await Ends().within(60, asyncio.sleep(0, 7), LATE) == 7
        return cleaned

    assert asyncio.run(scene()) == [True]


def test_the_first_reason_counts_and_none_after_the_end() -> None:
    async def scene() -> None:
        ends, begun, cleaned = Ends(), asyncio.Event(), list[bool]()
        loop = asyncio.get_running_loop()
        loop.call_soon(ends.now, GONE)
        loop.call_soon(ends.now, LATE)
        with pytest.raises(Problem, match="gone"):
            await ends.within(60, for_ever(begun, cleaned), LATE)
        ends.now(LATE)
        await asyncio.sleep(0)
        assert cleaned == [True]

    asyncio.run(scene())


def test_a_cancellation_of_others_is_passed_on() -> None:
    async def scene() -> None:
        begun, cleaned = asyncio.Event(), list[bool]()
        task = asyncio.ensure_future(_ended(begun, cleaned))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == [True]

    asyncio.run(scene())


async def _ended(begun: asyncio.Event, cleaned: list[bool]) -> None:
    """The task that makes an `Ends` is the one that it ends."""
    await Ends().within(60, for_ever(begun, cleaned), LATE)
