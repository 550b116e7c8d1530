"""A pytest plugin: the tests for GPUs at sizes that the emulated machine gets through.

With `pytest -p tests.emulation.driver.shrink` layers are a sixteenth as wide, texts run at most three times
again, loops of twenty and more have three rounds, and large galleries some thousand rows. Of a test with many
parameters every $CIR_SHRINK_EVERY-th case runs.
"""

from __future__ import annotations

import builtins
import os
from collections import Counter
from typing import Any

import pytest

from tests.gpu import recurrent_checks
from tests.scoring import cases

_SHARE = 16
_AGAIN = 3
_ROWS = ((100_000, 2_000), (30_000, 9_000), (20_000, 1_000))
"""So many rows or more become so many; some must not fit 1 MiB."""


def _smaller() -> None:
    random_text, check_texts = recurrent_checks.random_text, recurrent_checks.check_texts

    def narrow(kind: str, directions: int, hidden: int, width: int, **more: Any) -> Any:
        if more.get("out"):
            more["out"] = max(1, more["out"] // _SHARE)
        return random_text(kind, directions, max(1, hidden // _SHARE), max(1, width // _SHARE), **more)

    def fewer(device: Any, text: Any, lengths: list[int], again: int = 1) -> None:
        check_texts(device, text, lengths, min(again, _AGAIN))

    recurrent_checks.random_text = narrow  # type: ignore[assignment]
    recurrent_checks.check_texts = fewer


def _rows_of() -> None:
    rows_of = cases.rows_of

    def fewer(rows: Any, *more: Any, **named: Any) -> Any:
        most = next((fewer for many, fewer in _ROWS if len(rows) >= many), len(rows))
        return rows_of(rows[:most], *more, **named)

    cases.rows_of = fewer  # type: ignore[assignment]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every, seen = int(os.environ.get("CIR_SHRINK_EVERY", "1")), Counter[str]()
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        module: Any = getattr(item, "module", None)
        if module is not None and module.__name__.startswith(("tests.gpu", "tests.scoring.test_cuda_gpu")):
            module.range = lambda *stop: builtins.range(*(min(n, _AGAIN) if n >= 20 else n for n in stop))
        function = item.nodeid.partition("[")[0]
        (dropped if seen[function] % every else kept).append(item)
        seen[function] += 1
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept


_smaller()
_rows_of()
