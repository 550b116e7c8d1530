"""A model with its weights beside the graphs and inside them, and what a bundle answers."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from torch import Tensor

from cir_export.model_file import TrainedModel
from cir_infer import Engine
from cir_infer.bundle.model import Model

TEXTS = ["the small red cube", "is blue"]
LARGE = 256
"""Bytes of a weight that counts as large here."""


class Exported(NamedTuple):
    """One model's weights inside its graphs, and beside them; the model, and the weights that it had."""

    pair: tuple[Path, Path]
    model: TrainedModel
    weights: dict[str, weakref.ref[Tensor]]


def values_of(model: Model) -> dict[str, bytes]:
    tensors = onnx.load_from_string(model.whole()).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in tensors}


def answers(path: Path, device: str = "cpu") -> list[np.ndarray]:
    batch = np.random.default_rng(3).integers(0, 256, (3, 24, 24, 3), np.uint8)
    with Engine(path, device=device, threads=1) as engine:
        return [
            engine.encode_prepared(batch),
            engine.encode_texts(TEXTS),
            engine.encode_in_parts(batch).parts,
        ]
