"""The engine part of `make gpu-check` as a whole on the real device, with cold starts in fresh processes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import int8_made_for, write_tiny_bundle
from tests.emulation.driver.conftest import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)


def test_the_whole_check_passes(
    real_device: Any, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cir_bench.engine_check import __main__ as command
    from cir_bench.latency import workload

    monkeypatch.setattr(workload, "_PHOTOGRAPH", (48, 36))
    monkeypatch.setattr(command, "CAPTURED_SECONDS", 0.2)
    monkeypatch.setattr(command, "LATENCY_SECONDS", 0.4)
    for precision in ("float32", "float16"):
        shutil.copy(bundle, tmp_path / f"artemis-scenes-{precision}.cir")
    write_tiny_bundle(tmp_path / "artemis-scenes-int8.cir", **int8_made_for("tensorrt"))
    output = tmp_path / "engines.json"
    sizes = ["--rows", "200", "--images", "12", "--queries", "24", "--output", str(output)]
    monkeypatch.setattr(
        sys, "argv", ["check", "--bundles", str(tmp_path), "--only", "artemis-scenes", *sizes]
    )
    assert command.main() == 0
    steps = json.loads(output.read_text())["bundles"]["artemis-scenes-float16"]
    assert steps["cold_start"]["passed"] and steps["threads"]["memory_grown_bytes"] == 0
    assert all(chain["cuda_graph"] for chain in steps["captured"]["chains"])
