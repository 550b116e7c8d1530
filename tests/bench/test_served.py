"""Programs that the benchmark of the service compares with: they begin in time, or are ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from cir_bench.serving import served
from cir_infer.errors import CirError


@pytest.mark.parametrize(
    "start",
    [lambda: served.bare_service(b""), lambda: served.minimal_service("model", "gallery", 1)],
    ids=["bare", "minimal"],
)
def test_a_program_that_says_nothing_is_ended(
    start: Callable[[], AbstractContextManager[served.Service]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_PATIENCE", 0.2)
    monkeypatch.setattr(
        served, "child_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"]
    )
    with pytest.raises(CirError, match="did not begin"), start():
        pass
