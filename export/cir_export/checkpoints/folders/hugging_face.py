"""`CLIPModel` and `SiglipModel` of Hugging Face's transformers, from their folders.

Their key names stand in the public documentation and in the files; this module maps ours to them. CLIP's
packed projections of attention are three there, and the projections have no bias and are transposed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir_export.checkpoints.folders.images import ImageProcessor, image_processor
from cir_export.checkpoints.folders.renaming import renamed_model
from cir_export.checkpoints.folders.tokenizers import FolderTokenizer
from cir_export.checkpoints.folders.weights import HUGGING_FACE, open_weights
from cir_export.checkpoints.numbers import whole
from cir_export.model_file import TrainedModel
from cir_infer.errors import CheckpointError, shown

__all__ = ["load_clip", "load_siglip"]

_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}

_BLOCK = (
    (r"ln_([12])\.", r"layer_norm\1."),
    (r"attn\.out_proj\.", "self_attn.out_proj."),
    (r"mlp\.c_fc\.", "mlp.fc1."),
    (r"mlp\.c_proj\.", "mlp.fc2."),
)
"""Inside a block of either tower, ours and theirs."""

_CLIP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_projection": "text_projection.weight.T",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.proj": "visual_projection.weight.T",
    "ln_final.": "text_model.final_layer_norm.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
}
_SIGLIP = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text_head.": "text_model.head.",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.head.probe": "vision_model.head.probe",
    "visual.head.in_proj_": "vision_model.head.attention.in_proj_",
    "visual.head.out_proj.": "vision_model.head.attention.out_proj.",
    "visual.head.norm.": "vision_model.head.layernorm.",
    "visual.head.mlp.c_fc.": "vision_model.head.mlp.fc1.",
    "visual.head.mlp.c_proj.": "vision_model.head.mlp.fc2.",
}


def load_clip(folder: Path, config: Mapping[str, Any], system: str) -> TrainedModel:
    """A `CLIPModel`.

    Args:
        folder: of the model.
        config: its config.json.
        system: "sum", "sum-image-only" or "sum-text-only".

    Raises:
        CheckpointError: a part is missing, or the parts are not of one model.
    """
    where = str(folder / "config.json")
    text, vision = _towers(config, where)
    processor = image_processor(folder, whole(vision, "image_size", 224, where))
    tokenizer = FolderTokenizer(folder)
    vocabulary = whole(text, "vocab_size", 49408, where)
    # Before 2023 every config said 2, whatever the tokenizer's, and the state was taken at the largest id.
    stated = text.get("eos_token_id", 49407)
    last = stated if stated != 2 else max(tokenizer.tokenizer.get_vocab().values(), default=0)
    tokenizer.check(vocabulary, None, last, "CLIP")
    context = whole(text, "max_position_embeddings", 77, where)
    pair = {
        "family": "clip",
        "embed_dim": whole(config, "projection_dim", 512, where),
        "image_size": whole(vision, "image_size", 224, where),
        "vision_layers": (whole(vision, "num_hidden_layers", 12, where),),
        "vision_width": whole(vision, "hidden_size", 768, where),
        "vision_heads": whole(vision, "num_attention_heads", 12, where),
        "vision_mlp": whole(vision, "intermediate_size", 3072, where),
        "patch_size": whole(vision, "patch_size", 32, where),
        "context_length": context,
        "vocabulary_size": vocabulary,
        "text_width": whole(text, "hidden_size", 512, where),
        "text_heads": whole(text, "num_attention_heads", 8, where),
        "text_layers": whole(text, "num_hidden_layers", 12, where),
        "text_mlp": whole(text, "intermediate_size", 2048, where),
        "activation": _activation(text, vision, "quick_gelu", where),
        "norm_eps": _eps(text, vision, 1e-5, where),
        "mean": processor.mean,
        "std": processor.std,
    }
    spec = {
        "pad_id": 0,
        "unk_id": tokenizer.unk_id,
        "max_tokens": context,
        "captions": " and ",
    }
    return _trained(folder, system, pair, False, _CLIP, (tokenizer, spec), processor)


def load_siglip(folder: Path, config: Mapping[str, Any], system: str) -> TrainedModel:
    """A `SiglipModel`: SigLIP, or SigLIP 2 at a fixed resolution. See `load_clip`."""
    where = str(folder / "config.json")
    text, vision = _towers(config, where)
    if vision.get("vision_use_head") is False:
        raise CheckpointError(f"{where}: its vision tower has no pooling head, so it gives no embedding")
    processor = image_processor(folder, whole(vision, "image_size", 224, where))
    tokenizer = FolderTokenizer(folder, siglip=True)
    vocabulary = whole(text, "vocab_size", 32000, where)
    ending = tokenizer.eos_id
    if ending is None:
        raise CheckpointError(f"{tokenizer.where}: no eos_token is named in tokenizer_config.json")
    tokenizer.check(vocabulary, None, ending, "SigLIP")
    context = whole(text, "max_position_embeddings", 64, where)
    width = whole(vision, "hidden_size", 768, where)
    if whole(text, "projection_size", text.get("hidden_size", 768), where) != width:
        raise CheckpointError(
            f"{where}: texts become {text.get('projection_size')} values and images {width}; expected as many"
        )
    pair = {
        "family": "siglip",
        "image_size": whole(vision, "image_size", 224, where),
        "patch_size": whole(vision, "patch_size", 16, where),
        "vision_layers": whole(vision, "num_hidden_layers", 12, where),
        "vision_width": width,
        "vision_heads": whole(vision, "num_attention_heads", 12, where),
        "vision_mlp": whole(vision, "intermediate_size", 3072, where),
        "context_length": context,
        "vocabulary_size": vocabulary,
        "text_width": whole(text, "hidden_size", 768, where),
        "text_layers": whole(text, "num_hidden_layers", 12, where),
        "text_heads": whole(text, "num_attention_heads", 12, where),
        "text_mlp": whole(text, "intermediate_size", 3072, where),
        "activation": _activation(text, vision, "gelu_pytorch_tanh", where),
        "norm_eps": _eps(text, vision, 1e-6, where),
        "mean": processor.mean,
        "std": processor.std,
    }
    spec = {
        "pad_id": tokenizer.pad_id(text.get("pad_token_id")),
        "unk_id": tokenizer.unk_id,
        "max_tokens": context,
        "captions": " and ",
        "fixed_length": True,
    }
    return _trained(folder, system, pair, True, _SIGLIP, (tokenizer, spec), processor)


def _trained(
    folder: Path,
    system: str,
    pair: dict[str, Any],
    unit: bool,
    names: Mapping[str, str],
    texts: tuple[FolderTokenizer, dict[str, Any]],
    processor: ImageProcessor,
) -> TrainedModel:
    weights = open_weights(folder, HUGGING_FACE)
    model = renamed_model(
        {"system": system, "pair": pair, "unit": unit},
        weights,
        lambda name: _theirs(name, names),
        lambda name: name.startswith("logit_") or name.endswith("position_ids"),
    )
    return TrainedModel(model, texts[0].tokenizer, processor.image, texts[1], {})


def _theirs(name: str, table: Mapping[str, str]) -> tuple[str, ...]:
    """Their names of what makes one of our parameters."""
    if not name.startswith("pair."):
        return ()  # the scale of the training loss
    name = name.removeprefix("pair.")
    block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if block is not None:
        tower = "vision_model" if block[1] else "text_model"
        layer, rest = f"{tower}.encoder.layers.{block[2]}.", block[3]
        packed = re.fullmatch(r"attn\.in_proj_(weight|bias)", rest)
        if packed is not None:
            return tuple(f"{layer}self_attn.{part}_proj.{packed[1]}" for part in "qkv")
        for ours, theirs in _BLOCK:
            rest = re.sub(f"^{ours}", theirs, rest)
        return (layer + rest,)
    if name in table:
        return (table[name],)
    prefix = next(prefix for prefix in table if name.startswith(prefix))
    return (table[prefix] + name.removeprefix(prefix),)


def _towers(config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The tables of both towers. What is missing in one has the default of its class."""
    found = []
    for name in ("text_config", "vision_config"):
        table = config.get(name)
        if not isinstance(table, Mapping):
            raise CheckpointError(f"{where}: {name} is {shown(table)}; expected an object")
        found.append(table)
    return found[0], found[1]


def _activation(text: Mapping[str, Any], vision: Mapping[str, Any], default: str, where: str) -> str:
    said, other = (table.get("hidden_act", default) for table in (text, vision))
    if said != other or not isinstance(said, str) or said not in _ACTIVATIONS:
        raise CheckpointError(
            f"{where}: hidden_act is {shown([said, other])}; expected one of "
            f"{', '.join(_ACTIVATIONS)}, the same in both towers"
        )
    return _ACTIVATIONS[said]


def _eps(text: Mapping[str, Any], vision: Mapping[str, Any], default: float, where: str) -> float:
    value, other = (table.get("layer_norm_eps", default) for table in (text, vision))
    if value != other or not isinstance(value, float) or not 0 < value < 1:
        raise CheckpointError(f"{where}: layer_norm_eps differs between the towers, or is no small number")
    return value
