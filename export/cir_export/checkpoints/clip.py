"""CLIP's weights in the layouts that people have them in, and the sizes that they show.

- OpenAI's published files: TorchScript archives, float16.
- CLIP4Cir's `tuned_clip_*.pt`: `{"epoch", "CLIP": weights}`.
- open_clip's: a flat table (`.bin`, `.pt`, `.safetensors`), or a training checkpoint
  `{"state_dict": {"module. ...": ...}}`, with the text tower at the top or under `text.`.

Whether the transformers use QuickGELU or GELU cannot be seen in the weights. OpenAI's and what is tuned from
them use QuickGELU; for open_clip's layout `open_clip_config.json` says it, and has to be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cir_export.checkpoints.files import TORCHSCRIPT
from cir_export.checkpoints.numbers import LEAST_STD, channels, whole
from cir_export.checkpoints.prefixes import side_of
from cir_export.models.encoders.clip import CLIP_MEAN, CLIP_STD
from cir_infer.errors import CheckpointError, shown

__all__ = ["check_architecture", "clip_config", "clip_weights", "is_open_clip_config", "round_to_float16"]

_TELLING = ("visual.conv1.weight", "token_embedding.weight", "text_projection")

_TEXT_TOWER = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
_TOWERS = ("visual.", *_TEXT_TOWER)

_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}
_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_WHOLE = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
"""What open_clip says of OpenAI's architecture."""

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "logit_scale", "logit_bias", "attn_mask")


def is_open_clip_config(content: Any) -> bool:
    """Whether this is the content of an `open_clip_config.json`."""
    return isinstance(content, Mapping) and isinstance(content.get("model_cfg"), Mapping)


def clip_weights(content: Any) -> tuple[dict[str, Tensor], bool] | None:
    """The weights under OpenAI's names.

    Returns:
        The weights, and whether they are OpenAI's or tuned from them; None if this is no CLIP.
    """
    if not isinstance(content, Mapping):
        return None
    named = next((content[key] for key in ("CLIP", TORCHSCRIPT, "state_dict") if key in content), content)
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
        return None
    weights = {_openai_name(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not all(name in weights for name in _TELLING):
        return None
    if TORCHSCRIPT in content:
        # An archive also holds tensors that are no weights, such as masks.
        weights = {n: w for n, w in weights.items() if n.startswith(_TOWERS) and not n.endswith("attn_mask")}
    openai = "CLIP" in content or "input_resolution" in named or TORCHSCRIPT in content
    return {name: value for name, value in weights.items() if name not in _NOT_WEIGHTS}, openai


def _openai_name(name: str) -> str:
    name = name.removeprefix("module.")
    inner = name.removeprefix("text.")
    return inner if inner.startswith(_TEXT_TOWER) else name


def check_architecture(said: Mapping[str, Any], where: str) -> None:
    """Refuse what an `open_clip_config.json` says of a model and nobody here reads: it computes otherwise.

    Args:
        said: its content.
        where: the file that the model comes from, for messages.

    Raises:
        CheckpointError: something is unknown, or no description.
    """
    model = _table(said, "model_cfg", where)
    for part, known in (
        (model, _WHOLE),
        (_table(model, "text_cfg", where), _TEXT),
        (_table(model, "vision_cfg", where), _VISION),
    ):
        unknown = sorted(str(key) for key in part if key not in known)
        if unknown:
            raise CheckpointError(
                f"{where}: {shown(unknown[0])} is not among what is read here (OpenAI's architecture: ViT or "
                "ModifiedResNet with a text transformer); a Hugging Face folder of the same model may be"
            )
    if type(model.get("quick_gelu", False)) is not bool:
        raise CheckpointError(f"{where}: quick_gelu is {shown(model['quick_gelu'])}; expected true or false")


def clip_config(
    weights: Mapping[str, Tensor], openai: bool, open_clip: Mapping[str, Any] | None, where: str
) -> dict[str, Any]:
    """The `clip` table of a configuration, from names and shapes as OpenAI's own loader reads them.

    Args:
        weights: from `clip_weights`.
        openai: from `clip_weights`.
        open_clip: the content of `open_clip_config.json`, where there is one.
        where: the file, for messages.

    Raises:
        CheckpointError: a weight is missing, the activation cannot be known, or it is another architecture.
    """
    said = open_clip or {}
    check_architecture(said, where)
    model = _table(said, "model_cfg", where)
    if not openai and open_clip is None:
        raise CheckpointError(
            f"{where} is CLIP in open_clip's layout, which does not show whether it was trained with GELU or "
            "QuickGELU; give the open_clip_config.json that belongs to it as another file, with "
            '{"model_cfg": {"quick_gelu": true}} in it for QuickGELU'
        )
    quick = openai if open_clip is None else model.get("quick_gelu", False)
    text_width = _shape(weights, "ln_final.weight", where)[0]
    preprocessing = _table(said, "preprocess_cfg", where)
    return {
        **_vision(weights, _table(model, "vision_cfg", where), where),
        "embed_dim": _shape(weights, "text_projection", where)[1],
        "context_length": _shape(weights, "positional_embedding", where)[0],
        "vocabulary_size": _shape(weights, "token_embedding.weight", where)[0],
        "text_width": text_width,
        "text_heads": whole(_table(model, "text_cfg", where), "heads", max(1, text_width // 64), where),
        "text_layers": _count(weights, r"transformer\.resblocks\.(\d+)\."),
        "activation": "quick_gelu" if quick else "gelu",
        "mean": channels(preprocessing.get("mean", CLIP_MEAN), "mean", where),
        "std": channels(preprocessing.get("std", CLIP_STD), "std", where, least=LEAST_STD),
    }


def round_to_float16(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rounds what CLIP holds in float16 on a GPU: convolutions, linear layers, attention and projections.

    CLIP4Cir's validation on a GPU loads its float32 weights into such a model before it computes in float32.
    Normalisation layers and embeddings stay as they are.
    """
    kept = re.compile(r"(bn\d|ln_\w+|downsample\.1)\.|positional_embedding|token_embedding|class_embedding")
    return {
        name: value if kept.search(name) or not value.is_floating_point() else value.half().float()
        for name, value in weights.items()
    }


def _table(said: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = said.get(key, {})
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{where}: {key} is {shown(table)}; expected an object")
    return table


def _vision(weights: Mapping[str, Tensor], said: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "visual.proj" in weights:
        width, _, patch, _ = _shape(weights, "visual.conv1.weight", where, 4)
        side = side_of(_shape(weights, "visual.positional_embedding", where)[0], where)
        return {
            "patch_size": patch,
            "image_size": patch * side,
            "vision_layers": (_count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),),
            "vision_width": width,
            "vision_heads": max(1, width // whole(said, "head_width", 64, where)),
        }
    layers = tuple(_count(weights, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
    width = _shape(weights, "visual.layer1.0.conv1.weight", where, 4)[0]
    side = side_of(_shape(weights, "visual.attnpool.positional_embedding", where)[0], where)
    return {
        "patch_size": 0,
        "image_size": 32 * side,
        "vision_layers": layers,
        "vision_width": width,
        "vision_heads": max(1, 32 * width // 64),
    }


def _shape(weights: Mapping[str, Tensor], name: str, where: str, dims: int = 0) -> tuple[int, ...]:
    if name not in weights or (dims and weights[name].ndim != dims) or not weights[name].ndim:
        raise CheckpointError(f"{where}: CLIP's weight {name} is missing or not of the expected shape")
    return tuple(weights[name].shape)


def _count(weights: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand at the pattern's group."""
    return len({found.group(1) for name in weights if (found := re.match(pattern, name))})


def as_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point weights in float32."""
    return {name: w.float() if torch.is_floating_point(w) else w for name, w in weights.items()}
