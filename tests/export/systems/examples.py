"""Every system in a size that a test can afford."""

from __future__ import annotations

from typing import Any

import torch

from cir_export.models import MODELS, RetrievalModel, build_model
from cir_export.tokenization import SPECIALS, build_tokenizer

SIZE = 48
WORDS = [*SPECIALS, *(chr(97 + a) + chr(97 + b) for a in range(5) for b in range(5))]
TOKENIZER = build_tokenizer({word: index for index, word in enumerate(WORDS)})

_IMAGE = {"trunk": "small", "pooling": "grid", "size": SIZE, "channels": (8, 12, 16)}
_TEXT = {"vocabulary_size": len(WORDS), "word_dim": 10, "encoder": "lstm-last", "hidden": 14}
_CLIP = {
    "embed_dim": 24, "image_size": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 8, "vision_heads": 4,
    "patch_size": 0, "context_length": 77, "vocabulary_size": len(WORDS), "text_width": 32, "text_heads": 2,
    "text_layers": 2,
}  # fmt: skip
_VIT = {**_CLIP, "vision_layers": (2,), "vision_width": 32, "vision_heads": 2, "patch_size": 16}

OTHERWISE = {"artemis", "is-only", "em-only", "image-only", "text-only", "late-fusion"}
"""ARTEMIS and its parts have tests of their own."""

CONFIGS: dict[str, dict[str, Any]] = {
    name: {"system": name, "embedding_dim": 20, "image": _IMAGE, "text": _TEXT}
    for name, model in MODELS.items()
    if not model.from_towers and name not in OTHERWISE
}
"""An example of every system; below, those that need settings of their own."""
CONFIGS["tirg-raw"] = {
    **CONFIGS["tirg"],
    "image": {**_IMAGE, "pooling": "mean", "normalize": False},
    "text": {**_TEXT, "normalize": False},
}
CONFIGS["tirg-paper-gate"] = {**CONFIGS["tirg"], "gate": "paper"}
CONFIGS["relationship"] = {**CONFIGS["tirg"], "system": "relationship", "cells": 3, "hidden": 18}
CONFIGS["sac"] = {
    **CONFIGS["tirg"],
    "system": "sac",
    "text": {"vocabulary_size": len(WORDS), "word_dim": 10, "hidden": 14},
    "attention_dim": 6,
}
CONFIGS["val"] = {**CONFIGS["tirg"], "system": "val", "image": {**_IMAGE, "channels": (6, 8, 12)}}
CONFIGS["cosmo"] = {**CONFIGS["tirg"], "system": "cosmo", "style_hidden": 10}
CONFIGS["composeae"] = {**CONFIGS["tirg"], "system": "composeae"}
CONFIGS["maaf"] = {
    **CONFIGS["tirg"],
    "system": "maaf",
    "image": {**_IMAGE, "channels": (6, 10, 12)},
    "text": {"vocabulary_size": len(WORDS), "word_dim": 10, "hidden": 14, "max_words": 12},
    "heads": 4,
}
CONFIGS["cirplant"] = {
    **CONFIGS["tirg"],
    "system": "cirplant",
    "text": {"vocabulary_size": len(WORDS), "width": 16, "layers": 2, "heads": 2, "max_words": 12},
}
CONFIGS["clip4cir-sum"] = {"system": "clip4cir-sum", "clip": _VIT}
CONFIGS["clip-artemis"] = {"system": "clip-artemis", "clip": _VIT}
CONFIGS["clip4cir-combiner"] = {
    "system": "clip4cir-combiner", "clip": _CLIP, "projection_dim": 30, "hidden_dim": 40
}  # fmt: skip


def example(name: str, configs: dict[str, dict[str, Any]] = CONFIGS) -> RetrievalModel:
    """A system with weights that leave nothing at its neutral start, in evaluation mode."""
    torch.manual_seed(3)
    model = build_model(configs[name])
    with torch.no_grad():
        for key, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if key.endswith("running_var"):
                parameter.uniform_(0.5, 1.5)
            elif key.endswith("running_mean") or parameter.abs().max() == 0:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def side(name: str) -> int:
    """Height and width of a system's images."""
    return int(CONFIGS[name]["clip"]["image_size"]) if "clip" in CONFIGS[name] else SIZE


def batch(name: str, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, tokens and lengths."""
    dice = torch.Generator().manual_seed(11)
    images = torch.randint(0, 256, (count, side(name), side(name), 3), generator=dice, dtype=torch.uint8)
    # Noise alone looks alike to every encoder: each image has a brightness of its own.
    images = images // torch.arange(1, count + 1).view(-1, 1, 1, 1).to(torch.uint8)
    tokens = torch.randint(5, len(WORDS), (count, 7), generator=dice)
    return images, tokens, torch.tensor([7, 3, 1, 5, 2, 6][:count])
