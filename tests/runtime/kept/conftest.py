"""A folder of kept graphs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    return tmp_path / "graphs"
