"""Frozen encoders: every picture and text is encoded once, and learning from that is learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cir_export.training import frozen, trainer
from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import TrainingError
from tests.training.test_data_sets import shoes

CLIP = {
    "embed_dim": 16, "image_size": 32, "vision_layers": [1], "vision_width": 16, "vision_heads": 2,
    "patch_size": 16, "context_length": 64, "text_width": 16, "text_heads": 2, "text_layers": 1,
}  # fmt: skip


IMAGE = {"trunk": "small", "size": 24, "channels": [4, 6, 8], "pooling": "gem"}
WORDS = {"encoder": "bigru", "word_dim": 4}
MODELS: dict[str, dict[str, Any]] = {
    "clip4cir-combiner": {"clip": CLIP, "projection_dim": 16, "hidden_dim": 16},
    "artemis": {"embedding_dim": 8, "image": IMAGE, "text": WORDS},
    "tirg-last-convolution": {"embedding_dim": 8, "image": {**IMAGE, "pooling": "grid"}, "text": WORDS},
    "sac": {"embedding_dim": 8, "image": IMAGE, "text": {"word_dim": 4, "hidden": 8}},
}


def config(root: Path, system: str = "clip4cir-combiner", **training: Any) -> TrainingConfig:
    settings: dict[str, Any] = {"epochs": 3, "frozen_epochs": 3, "families_per_batch": 5, **training}
    model = {"system": system, **MODELS[system]}
    return TrainingConfig(DataSettings(str(root), "shoes"), model, TrainingSettings(**settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(TrainingFiles(folder).model, weights_only=True)["weights"]
    return found


def losses(folder: Path) -> list[float]:
    entries = map(json.loads, TrainingFiles(folder).log.read_text().splitlines())
    return [entry["loss"] for entry in entries if entry["event"] == "epoch"]


def test_kept_embeddings_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shoes(tmp_path / "data")
    kept = train(config(root), tmp_path / "kept", "cpu")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("encoded-*.npy")}
    assert len(files) == 2  # the training pictures, the validation gallery
    train(config(root, learning_rate=1e-3), tmp_path / "kept", "cpu", restart=True)
    assert files == {path: path.stat().st_mtime_ns for path in files}
    cut = next(iter(files))
    whole = cut.read_bytes()
    for left in (0, 60, len(whole) - 1):  # as a full disk or a copy leaves it
        cut.write_bytes(whole[:left])
        train(config(root), tmp_path / "kept", "cpu", restart=True)
        assert cut.read_bytes() == whole
    monkeypatch.setattr(trainer, "kept_while_frozen", lambda *_: None)
    anew = train(config(root), tmp_path / "anew", "cpu")
    assert not list((tmp_path / "anew").glob("encoded-*"))
    assert kept["test"] == anew["test"]
    one, other = weights(tmp_path / "kept"), weights(tmp_path / "anew")
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("system", ["artemis", "tirg-last-convolution", "sac"])
def test_a_trunk_that_thaws_later_is_kept_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    """Pooled rows, the last map, and two maps side by side.

    Losses are compared: Adam moves a weight without a gradient (a bias before a batch norm) by rounding.
    """
    settings = config(shoes(tmp_path / "data"), system, frozen_epochs=2)
    kept = train(settings, tmp_path / "kept", "cpu")
    assert len(list((tmp_path / "kept").glob("encoded-*.npy"))) == 2
    monkeypatch.setattr(trainer, "kept_while_frozen", lambda *_: None)
    anew = train(settings, tmp_path / "anew", "cpu")
    assert kept["test"] == anew["test"]
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "anew"), abs=2e-3)


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frozen.np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(TrainingError, match=r"No space left on device; it takes 0\.0 GB"):
        train(config(shoes(tmp_path / "data")), tmp_path / "out", "cpu")
    assert not list((tmp_path / "out").glob("encoded-*"))


@pytest.mark.parametrize("change", [{"frozen_epochs": 1}, {"augmentation": "flip"}])
def test_what_changes_is_not_kept(tmp_path: Path, change: dict[str, Any]) -> None:
    train(config(shoes(tmp_path / "data"), **change), tmp_path / "out", "cpu")
    assert not list((tmp_path / "out").glob("encoded-*"))
