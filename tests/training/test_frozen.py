"""Frozen encoders: every picture and text is encoded once, and learning from that is learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cir_export.training import trainer
from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.trainer import TrainingFiles, train
from tests.training.test_data_sets import shoes

CLIP = {
    "embed_dim": 16, "image_size": 32, "vision_layers": [1], "vision_width": 16, "vision_heads": 2,
    "patch_size": 16, "context_length": 64, "text_width": 16, "text_heads": 2, "text_layers": 1,
}  # fmt: skip


def config(root: Path, **training: Any) -> TrainingConfig:
    settings: dict[str, Any] = {"epochs": 3, "frozen_epochs": 3, "families_per_batch": 5, **training}
    model = {"system": "clip4cir-combiner", "clip": CLIP, "projection_dim": 16, "hidden_dim": 16}
    return TrainingConfig(DataSettings(str(root), "shoes"), model, TrainingSettings(**settings))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(TrainingFiles(folder).model, weights_only=True)["weights"]
    return found


def test_kept_embeddings_train_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shoes(tmp_path / "data")
    kept = train(config(root), tmp_path / "kept", "cpu")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("encoded-*.npy")}
    assert len(files) == 2  # the training pictures, the validation gallery
    train(config(root, learning_rate=1e-3), tmp_path / "kept", "cpu")
    assert files == {path: path.stat().st_mtime_ns for path in files}
    train(config(root), tmp_path / "kept", "cpu")
    monkeypatch.setattr(trainer, "stay_frozen", lambda *_: False)
    anew = train(config(root), tmp_path / "anew", "cpu")
    assert not list((tmp_path / "anew").glob("encoded-*"))
    assert kept["test"] == anew["test"]
    one, other = weights(tmp_path / "kept"), weights(tmp_path / "anew")
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("change", [{"frozen_epochs": 2}, {"augmentation": "flip"}])
def test_what_changes_is_not_kept(tmp_path: Path, change: dict[str, Any]) -> None:
    train(config(shoes(tmp_path / "data"), **change), tmp_path / "out", "cpu")
    assert not list((tmp_path / "out").glob("encoded-*"))
