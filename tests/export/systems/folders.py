"""The golden folders of transformers and open_clip: what the packages answered, and altered copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cir_export.checkpoints import load_trained
from cir_export.model_file import TrainedModel
from cir_export.preprocessing import check_inputs, text_input
from cir_infer.errors import CheckpointError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from tests.export.systems.shared import GOLDEN

ENCODERS = GOLDEN / "encoders"


@cache
def loaded(name: str, system: str = "sum") -> TrainedModel:
    return load_trained(ENCODERS / name, system=system)


def answers(name: str) -> dict[str, Any]:
    with np.load(ENCODERS / name / "golden.npz") as file:
        return dict(file)


def texts(name: str) -> tuple[list[str], list[list[int]], np.ndarray]:
    """Texts that fit, their ids, and their places in the answers."""
    said = json.loads((ENCODERS / name / "tokens.json").read_text())
    places = np.flatnonzero(said.get("fits", [True] * len(said["texts"])))
    return [said["texts"][i] for i in places], [said["ids"][i] for i in places], places


def images() -> list[Path]:
    return sorted(ENCODERS.glob("*.png"))


def reader(name: str) -> TextReader:
    trained = loaded(name)
    return TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text))


def pixels(name: str) -> np.ndarray:
    image = loaded(name).image
    return np.stack([preprocess(path, check_inputs(image, loaded(name).text)) for path in images()])


# ---- altered


def copied(tmp_path: Path, name: str = "clip") -> Path:
    return Path(shutil.copytree(ENCODERS / name, tmp_path / "folder"))


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def saved(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load_trained(folder)
    assert len(str(caught.value)) < 700 + len(str(folder)) * 4
