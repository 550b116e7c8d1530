"""Checkpoints of BLIP-2's kind in LAVIS' layout: CoVR-2, SPRC, SPN's of SPRC, and BLIP-2's own first stage.

    {"epoch", "Blip2QformerCirAlignPrompt": weights}     SPRC, SPN
    {"model": weights}                                   CoVR-2, LAVIS

`weights` are query_tokens, visual_encoder.* (EVA's ViT, or CLIP's), ln_vision.*, Qformer.bert.*,
vision_proj.*, text_proj.*. What else is in them tells the systems apart: `prompt_tokens` are SPRC's,
`itm_head` without them is BLIP-2's own, neither is CoVR-2's. Sizes are read from the shapes; heads cannot be,
and are those of the published networks: 88 values in EVA's, 64 in CLIP's and in BERT.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cir_export.checkpoints.bert import blip_tokenizer
from cir_export.checkpoints.prefixes import LAYER, as_floats, count, renamed, shape, side_of
from cir_export.model_file import TrainedModel, build_fitting, restore_weights
from cir_infer.errors import CheckpointError

__all__ = ["is_blip2", "load_blip2_checkpoint"]

_TELLING = ("query_tokens", "Qformer.bert.embeddings.word_embeddings.weight", "vision_proj.weight")

_WHOLE = {
    "ln_vision.": "visual.ln_post.",
    # EVA's ViT
    "visual_encoder.cls_token": "visual.class_embedding",
    "visual_encoder.pos_embed": "visual.positional_embedding",
    "visual_encoder.patch_embed.proj.": "visual.conv1.",
    # CLIP's, and its blocks
    "visual_encoder.conv1.": "visual.conv1.",
    "visual_encoder.class_embedding": "visual.class_embedding",
    "visual_encoder.positional_embedding": "visual.positional_embedding",
    "visual_encoder.ln_pre.": "visual.ln_pre.",
    "visual_encoder.transformer.": "visual.transformer.",
    # BERT
    "Qformer.bert.embeddings.word_embeddings.": "word_embedding.",
    "Qformer.bert.embeddings.position_embeddings.weight": "position_embedding",
    "Qformer.bert.embeddings.LayerNorm.": "qformer.norm.",
    "query_tokens": "query_tokens",
    "vision_proj.": "vision_proj.",
    "text_proj.": "text_proj.",
}
_EVA_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_LAYER = {theirs: ours for ours, theirs in LAYER.items()}
"""Prefixes of their names and ours: of all, within a block of EVA's ViT, within a layer of BERT."""

_BLOCKS = (
    (r"visual_encoder\.blocks\.(\d+)\.", "visual.transformer.resblocks.", _EVA_BLOCK),
    (r"Qformer\.bert\.encoder\.layer\.(\d+)\.", "qformer.layers.", _LAYER),
    (r"()", "", _WHOLE),
)

_NO_PART = ("Qformer.cls.", "itm_head.", "temp", "prompt_tokens", "Qformer.bert.embeddings.position_ids")
"""What has no part in the score: heads of other losses."""

_WORDS = {"sprc": 32, "covr2": 64, "blip2-text-only": 32}
"""Tokens of the longest text that their authors let through."""

_FORMATS = {"sprc": "SPRC or SPN", "covr2": "CoVR-2", "blip2-text-only": "LAVIS BLIP-2"}


def is_blip2(content: Any) -> bool:
    """Whether this is a checkpoint of BLIP-2's kind."""
    return _state(content) is not None


def load_blip2_checkpoint(
    content: Any, where: str, vocabulary: str | os.PathLike[str] | None
) -> TrainedModel:
    """Builds the model of a checkpoint.

    Args:
        content: see `is_blip2`.
        where: its path, for messages.
        vocabulary: BERT's word pieces, see `blip_tokenizer`.

    Raises:
        CheckpointError: a part is missing or of another shape, or the vocabulary is of another model.
    """
    state = _state(content)
    assert state is not None
    if "prompt_tokens" in state:
        system = "sprc"
    else:
        system = "blip2-text-only" if "itm_head.weight" in state else "covr2"
    weights = _renamed(state, where)
    sizes = _sizes(weights, _WORDS[system], where)
    tokenizer = blip_tokenizer(vocabulary, sizes["vocabulary_size"], where)
    config = {"system": system, "blip2": sizes}
    filled = {f"blip2.{name}": value for name, value in weights.items()} | {"logit_scale": torch.zeros(())}
    model = build_fitting(config, filled, where)
    restore_weights(model, filled, where)
    size = sizes["image_size"]
    # CoVR-2 and BLIP-2 squash a picture to the square; SPRC pads it first, as CLIP4Cir does.
    steps: list[dict[str, Any]] = [
        {"op": "to_rgb"},
        {"op": "resize", "size": [size, size], "interpolation": "bicubic"},
    ]
    if system == "sprc":
        steps = [
            {"op": "target_pad", "ratio": 1.25},
            {"op": "resize", "size": size, "interpolation": "bicubic"},
            {"op": "center_crop", "size": size},
            {"op": "to_rgb"},
        ]
    image = {"kind": "pixels", "height": size, "width": size, "exif_orientation": True, "steps": steps}
    text = {
        "pad_id": 0,
        "unk_id": tokenizer.token_to_id("[UNK]"),
        "max_tokens": sizes["context_length"],
        "captions": " and ",
    }
    provenance = {"format": _FORMATS[system], **dict.fromkeys(("weights_licence", "data_licence"), _UNSTATED)}
    if system == "sprc":
        provenance["weights_licence"] += "; SPRC's repository grants none, SPN's is MIT"
    if isinstance(content.get("epoch"), int):
        provenance["epoch"] = content["epoch"]
    return TrainedModel(model, tokenizer, image, text, provenance)


_UNSTATED = "not stated in the file"


def _state(content: Any) -> Mapping[str, Any] | None:
    """The weights under LAVIS' names, wherever they lie; None where there are none."""
    if not isinstance(content, Mapping):
        return None
    for found in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        names = {str(name).removeprefix("module."): value for name, value in found.items()}
        if all(isinstance(names.get(name), Tensor) for name in _TELLING):
            return names
    return None


def _renamed(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The weights under our names, in float32."""
    found: dict[str, Tensor] = {}
    biases: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(_NO_PART) or not isinstance(value, Tensor):
            continue
        value = as_floats(name, value, where)
        apart = re.fullmatch(r"visual_encoder\.blocks\.(\d+)\.attn\.([qv])_bias", name)
        if apart is not None:
            biases.setdefault(apart[1], {})[apart[2]] = value.reshape(-1)
            continue
        ours = renamed(name, _BLOCKS)
        if ours is None:
            raise CheckpointError(f"{where}: weight {name[:100]} has no place in a model of BLIP-2's kind")
        found[ours] = value
    for name, lead in (("visual.class_embedding", 2), ("visual.positional_embedding", 1)):
        value = found.get(name, torch.zeros(()))
        if value.ndim == 3 and value.shape[:lead] == (1,) * lead:  # EVA's begin with axes of one
            found[name] = value.reshape(value.shape[lead:])
    for block, parts in biases.items():
        q, v = parts.get("q"), parts.get("v")
        if q is None or v is None or q.shape != v.shape:
            raise CheckpointError(
                f"{where}: q_bias or v_bias of block {block} is missing or of another shape"
            )
        bias = torch.cat([q, torch.zeros_like(q), v])  # keys have none
        found[f"visual.transformer.resblocks.{block}.attn.in_proj_bias"] = bias
    return found


def _sizes(weights: Mapping[str, Tensor], words: int, where: str) -> dict[str, Any]:
    """The `blip2` table of a configuration, from names and shapes."""
    vision, _, patch, _ = shape(weights, "visual.conv1.weight", 4, where)
    side = side_of(shape(weights, "visual.positional_embedding", 2, where)[0], where)
    _, queries, width = shape(weights, "query_tokens", 3, where)
    clip = "visual.ln_pre.weight" in weights
    block = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    crossed = [
        int(found[1]) for name in weights if (found := re.match(r"qformer\.layers\.(\d+)\.cross\.", name))
    ]
    every = min((number for number in crossed if number), default=count(weights, r"qformer\.layers\.(\d+)\."))
    vocabulary = shape(weights, "word_embedding.weight", 2, where)[0]
    positions = shape(weights, "position_embedding", 2, where)[0]
    return {
        "embed_dim": shape(weights, "vision_proj.weight", 2, where)[0],
        "image_size": patch * side,
        "patch_size": patch,
        "vision_width": vision,
        "vision_layers": count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
        "vision_heads": max(1, vision // (64 if clip else 88)),
        "vision_mlp": shape(weights, block, 2, where)[0],
        "queries": queries,
        "width": width,
        "layers": count(weights, r"qformer\.layers\.(\d+)\."),
        "heads": max(1, width // 64),
        "mlp": shape(weights, "qformer.layers.0.of_text.inner.weight", 2, where)[0],
        "cross_every": every,
        "vocabulary_size": vocabulary,
        "context_length": min(words, positions),
        "positions": positions,
        "activation": "quick_gelu" if clip else "gelu",
        "starts_with_norm": clip,
        "vision_eps": 1e-5 if clip else 1e-6,
    }
