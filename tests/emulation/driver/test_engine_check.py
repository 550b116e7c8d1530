"""The engine part of `make gpu-check` as a whole on the real device, with cold starts in fresh processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.emulation.driver.conftest import missing
from tests.runtime.tensorrt.small_check import small_check

if missing():
    pytest.skip(missing(), allow_module_level=True)


def test_the_whole_check_passes(
    real_device: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = small_check(bundle, tmp_path, monkeypatch)
    assert code == 0
    steps = found["artemis-scenes-float16"]
    assert steps["cold_start"]["passed"] and steps["threads"]["memory_grown_bytes"] == 0
    assert all(chain["cuda_graph"] for chain in steps["captured"]["chains"])
