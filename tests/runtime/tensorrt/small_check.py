"""The engine part of `make gpu-check` on the committed model, in a size that a test can afford."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import int8_made_for, write_tiny_bundle


def small_check(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the steps by bundle."""
    from cir_bench.engine_check import __main__ as command
    from cir_bench.latency import workload

    monkeypatch.setattr(workload, "_PHOTOGRAPH", (48, 36))
    monkeypatch.setattr(command, "CAPTURED_SECONDS", 0.2)
    monkeypatch.setattr(command, "LATENCY_SECONDS", 0.4)
    for precision in ("float32", "float16"):
        shutil.copy(bundle, folder / f"artemis-scenes-{precision}.cir")
    write_tiny_bundle(folder / "artemis-scenes-int8.cir", **int8_made_for("tensorrt"))
    output = folder / "engines.json"
    sizes = ["--rows", "200", "--images", "12", "--queries", "24", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["check", "--bundles", str(folder), "--only", "artemis-scenes", *sizes])
    code = command.main()
    return code, json.loads(output.read_text())["bundles"]
