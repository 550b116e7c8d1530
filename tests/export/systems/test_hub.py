"""Public models by their names: known, found in the cache, listed, and never fetched unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cir_export.checkpoints import load_trained
from cir_export.commands.export import main
from cir_export.hub import is_hub_name
from cir_infer.errors import CheckpointError
from tests.export.systems.folders import (
    ENCODERS,
)


def test_a_name_on_the_hub_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    assert is_hub_name("BAAI/BGE-VL-base") and is_hub_name("google/siglip2-so400m-patch14-384")
    for text in ("model.pt", "BAAI/model.pt", "a/b/c", "/BAAI/x", "../x", "here/there", "BAAI/"):
        assert not is_hub_name(text)


def test_without_a_network_the_command_that_downloads_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hf download BAAI/BGE-VL-base --local-dir BGE-VL-base"):
        load_trained("BAAI/BGE-VL-base")


def test_what_was_fetched_before_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    store = tmp_path / "models--BAAI--BGE-VL-base"
    shutil.copytree(ENCODERS / "clip", store / "snapshots" / ("0" * 40))
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text("0" * 40)
    found = load_trained("BAAI/BGE-VL-base").provenance
    assert found["source"] == "BAAI/BGE-VL-base"
    assert (found["weights_licence"], "MegaPairs" in found["data_licence"]) == ("mit", True)


def test_the_presets_are_listed_with_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--json"]) in (0, None)
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)["presets"]}
    assert listed["openai/clip-vit-base-patch32"]["macs"] == pytest.approx(4.4e9, rel=0.02)
    assert listed["BAAI/BGE-VL-base"]["macs"] == pytest.approx(17.5e9, rel=0.02)
    assert listed["BAAI/BGE-VL-base"]["weights_licence"] == "MIT"
    main(["--list"])
    assert "CC BY 4.0" in capsys.readouterr().out
