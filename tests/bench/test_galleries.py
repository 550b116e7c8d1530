from __future__ import annotations

import json
from pathlib import Path

import pytest

from cir_bench.commands import main
from tests.bundles import write_tiny_bundle
from tests.indexing.support import folder_of


def test_the_gallery_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    images = folder_of(tmp_path / "f", 10)
    options = ["--rows", "600", "--dim", "16", "--rounds", "2", "--work", str(tmp_path)]
    assert main(["gallery", *options, "--bundle", str(bundle), "--images", str(images), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    store = report["store"]
    # Every third item is a dress, less the tenth that was removed.
    assert 150 < store["filters"]["category = dress"]["matching"] < 200
    assert store["compaction"]["queries_beside"] >= 1 and store["open_ms"]["median"] > 0
    assert report["indexing"]["images"] == 10 and report["indexing"]["ratio"]["median"] > 0


def test_half_of_the_flags_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gallery", "--rows", "0", "--bundle", "x.cir"]) == 2
    assert "belong together" in capsys.readouterr().err
