"""Calls that are due: never early, each once, and not where they were taken back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cir_infer.serving import deadlines
from cir_infer.serving.deadlines import after


def test_what_is_due_is_called_once_in_order_and_not_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_STEP", 0.02)
    called: list[tuple[float, float]] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        begun, done = loop.time(), loop.create_future()
        for seconds in (0.09, 0.0, 0.05, 0.02):
            after(loop, seconds, lambda wanted=seconds: called.append((wanted, loop.time() - begun)))  # type: ignore[misc]
        after(loop, 0.15, lambda: done.set_result(None))
        await done

    asyncio.run(scene())
    assert [wanted for wanted, _ in called] == [0.0, 0.02, 0.05, 0.09]
    assert all(wanted <= came for wanted, came in called)


def test_what_was_taken_back_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "_MOST_LEFT", 20)

    async def scene() -> int:
        loop = asyncio.get_running_loop()
        kept = [after(loop, 60 + number, lambda: None) for number in range(10)]
        for number in range(1000):
            after(loop, 60 + number % 7, lambda: None).cancel()
        assert all(deadline.waits for deadline in kept)
        return sum(map(len, deadlines._of[loop]._steps.values()))

    assert asyncio.run(scene()) <= 31


def test_what_was_taken_back_is_not_called_and_a_failure_keeps_no_other_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "_STEP", 0.02)
    failed: list[dict[str, Any]] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, told: failed.append(told))
        done = loop.create_future()
        taken_back = after(loop, 0.0, lambda: done.set_exception(AssertionError("it was taken back")))
        after(loop, 0.0, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        after(loop, 0.0, lambda: done.set_result(None))
        taken_back.cancel()
        await done
        taken_back.cancel()  # too late, and no matter

    asyncio.run(scene())
    assert [type(told["exception"]) for told in failed] == [ZeroDivisionError]
