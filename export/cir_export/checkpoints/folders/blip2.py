"""`Blip2ForImageTextRetrieval` of Hugging Face's transformers, from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cir_export.checkpoints.folders.images import image_processor
from cir_export.checkpoints.folders.renaming import renamed_model
from cir_export.checkpoints.folders.tokenizers import FolderTokenizer
from cir_export.checkpoints.folders.weights import HUGGING_FACE, open_weights
from cir_export.checkpoints.numbers import whole
from cir_export.checkpoints.prefixes import LAYER, of_hugging_face, renamed
from cir_export.model_file import TrainedModel
from cir_infer.errors import CheckpointError, shown

__all__ = ["load_blip2"]

_WHOLE = {
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "query_tokens": "query_tokens",
    "word_embedding.weight": "embeddings.word_embeddings.weight",
    "position_embedding": "embeddings.position_embeddings.weight",
    "qformer.norm.": "qformer.layernorm.",
    "vision_proj.": "vision_projection.",
    "text_proj.": "text_projection.",
}
_BLOCK = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.in_proj_": "self_attn.qkv.",
    "attn.out_proj.": "self_attn.projection.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_LAYER = {ours: of_hugging_face(theirs) for ours, theirs in LAYER.items()}
"""Prefixes of our names and theirs: of all, within a block of the ViT, within a layer of the Q-Former."""

_BLOCKS = (
    (r"visual\.transformer\.resblocks\.(\d+)\.", "vision_model.encoder.layers.", _BLOCK),
    (r"qformer\.layers\.(\d+)\.", "qformer.encoder.layer.", _LAYER),
    (r"()", "", _WHOLE),
)


def load_blip2(folder: Path, config: Mapping[str, Any], system: str) -> TrainedModel:
    """A `Blip2ForImageTextRetrieval`.

    Args:
        folder: of the model.
        config: its config.json.
        system: "blip2-text-only".

    Raises:
        CheckpointError: a part is missing, or the parts are not of one model.
    """
    where = str(folder / "config.json")
    vision, qformer = (_table(config, name, where) for name in ("vision_config", "qformer_config"))
    size = whole(vision, "image_size", 224, where)
    processor = image_processor(folder, size)
    tokenizer = FolderTokenizer(folder)
    vocabulary = whole(qformer, "vocab_size", 30522, where)
    first, last = (tokenizer.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    if first is None or last is None:
        raise CheckpointError(
            f"{tokenizer.where} has no [CLS] or no [SEP]; expected BERT's tokenizer, which the model reads"
        )
    tokenizer.check(vocabulary, first, last, "BLIP-2")
    positions = whole(qformer, "max_position_embeddings", 512, where)
    eps = {
        "vision_eps": _eps(vision, 1e-6, where),
        "last_eps": _eps(vision, 1e-6, where),
        "norm_eps": _eps(qformer, 1e-12, where),
    }
    for table in (vision, qformer):
        if table.get("hidden_act", "gelu") != "gelu":
            raise CheckpointError(f"{where}: hidden_act is {shown(table['hidden_act'])}; expected gelu")
    blip2 = {
        "embed_dim": whole(config, "image_text_hidden_size", 256, where),
        "image_size": size,
        "patch_size": whole(vision, "patch_size", 14, where),
        "vision_width": whole(vision, "hidden_size", 1408, where),
        "vision_layers": whole(vision, "num_hidden_layers", 39, where),
        "vision_heads": whole(vision, "num_attention_heads", 16, where),
        "vision_mlp": whole(vision, "intermediate_size", 6144, where),
        "queries": whole(config, "num_query_tokens", 32, where),
        "width": whole(qformer, "hidden_size", 768, where),
        "layers": whole(qformer, "num_hidden_layers", 12, where),
        "heads": whole(qformer, "num_attention_heads", 12, where),
        "mlp": whole(qformer, "intermediate_size", 3072, where),
        "cross_every": whole(qformer, "cross_attention_frequency", 2, where),
        "vocabulary_size": vocabulary,
        "context_length": positions,
        "positions": positions,
        "mean": processor.mean,
        "std": processor.std,
        **eps,
    }
    weights = open_weights(folder, HUGGING_FACE)
    model = renamed_model(
        {"system": system, "blip2": blip2},
        weights,
        lambda name: _theirs(name, biased=vision.get("qkv_bias", True) is not False),
        lambda name: name.startswith(("itm_head.", "language_")) or name.endswith("position_ids"),
    )
    text = {
        "pad_id": tokenizer.pad_id(0),
        "unk_id": tokenizer.unk_id,
        "max_tokens": positions,
        "captions": " and ",
    }
    return TrainedModel(model, tokenizer.tokenizer, processor.image, text, {})


def _theirs(name: str, biased: bool) -> tuple[str, ...]:
    """Their name of one of our parameters."""
    if not name.startswith("blip2."):
        return ()  # the scale of the training loss
    name = name.removeprefix("blip2.")
    if name.endswith("attn.in_proj_bias") and not biased:
        return ()  # it is built as zeros
    theirs = renamed(name, _BLOCKS)
    assert theirs is not None  # the tables hold all that is built
    return (theirs,)


def _table(config: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = config.get(name)
    if not isinstance(table, Mapping):
        raise CheckpointError(f"{where}: {name} is {shown(table)}; expected an object")
    return table


def _eps(table: Mapping[str, Any], default: float, where: str) -> float:
    value = table.get("layer_norm_eps", default)
    if not isinstance(value, float) or not 0 < value < 1:
        raise CheckpointError(f"{where}: layer_norm_eps is {shown(value)}; expected a small number")
    return value
