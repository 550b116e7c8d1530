"""Queries that nobody waits for any more are neither made ready nor computed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from cir_infer import Hit
from cir_infer.serving.batching import Batcher, Query, Wanted
from cir_infer.serving.metrics import Metrics
from tests.serving.support import Gated, running

REFERENCE = Hit("sku-2", 1, 0.5, {}, {}, None)


def dropped(metrics: Metrics, reason: str) -> float:
    return float(metrics.registry.get_sample_value("cir_cancelled_total", {"reason": reason}) or 0.0)


def test_a_query_that_is_late_is_not_computed(bundle: Path) -> None:
    """Its deadline passes while another is computed; the service that it was for has answered by then."""
    with running(bundle) as found:
        searcher, opened = Gated.under(found.service), found.service.current._opened
        metrics = Metrics()
        batcher = Batcher(8, metrics)

        async def ask() -> None:
            first = Query(opened, REFERENCE, "is red", Wanted(3), time.monotonic() + 600)
            batcher.ask(first)
            await asyncio.to_thread(searcher.arrived.acquire)
            late = Query(opened, REFERENCE, "is blue", Wanted(3), time.monotonic() - 1)
            batcher.ask(late)
            await asyncio.sleep(0)
            searcher.gate.set()
            assert len((await first.future).hits) == 3
            with pytest.raises(TimeoutError):
                await late.future

        try:
            asyncio.run(ask())
        finally:
            searcher.gate.set()
            batcher.close()
        assert searcher.sizes == [1]
        assert (dropped(metrics, "deadline"), dropped(metrics, "disconnected")) == (1, 0)


@pytest.mark.parametrize("why", ["deadline", "disconnected"])
def test_no_picture_is_made_ready_for_nobody(bundle: Path, why: str) -> None:
    with running(bundle) as found:
        opened = found.service.current._opened
        metrics = Metrics()
        batcher = Batcher(8, metrics)
        made: list[Any] = []

        async def ask() -> None:
            until = time.monotonic() + (600 if why == "disconnected" else -1)
            query = Query(opened, None, "is red", Wanted(3), until)
            if why == "disconnected":
                query.future.cancel()
            await asyncio.to_thread(batcher.ask_made, query, lambda: made.append(1))
            if why == "deadline":
                with pytest.raises(TimeoutError):
                    await query.future

        try:
            asyncio.run(ask())
        finally:
            batcher.close()
        assert made == [] and dropped(metrics, why) == 1
