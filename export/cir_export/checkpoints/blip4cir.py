"""Models of Bi-BLIP4CIR from their files: BLIP, its text encoder fine-tuned or not, and a Combiner.

- `model_base.pth` of BLIP: `{"model": {visual_encoder.*, vision_proj.*, text_encoder.*, text_proj.*, ...}}`.
- the tuned text encoder: `{"epoch", "BLIPTextEncoder": {text_encoder.*, text_proj.*}}`.
- `{"epoch", "Combiner": weights}`, CLIP4Cir's under the same names. Without it the system is the sum.

Images have 384 pixels whatever size BLIP's file was trained at: its places are stretched to the finer grid.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Regex, normalizers
from torch import Tensor

from cir_export.checkpoints.bert import blip_tokenizer
from cir_export.checkpoints.clip4cir import combiner_weights
from cir_export.checkpoints.prefixes import LAYER, as_floats, count, renamed, shape, side_of
from cir_export.model_file import TrainedModel, build_fitting, restore_weights
from cir_infer.errors import CheckpointError

__all__ = ["is_blip4cir", "load_blip4cir"]

_SIZE = 384
_WORDS = 77
_TELLING = ("visual_encoder.blocks.0.attn.qkv.weight", "text_encoder.embeddings.word_embeddings.weight")
_TUNED = "BLIPTextEncoder"
_TUNED_TELLING = (_TELLING[1], "text_proj.weight")

_FORWARD = "[FORWARD]"
"""The prompt of the direction from reference to target, before every part of a text that "and" joins; the
authors take the letters "and" for it wherever they stand, and so is it here."""

_WHOLE = {
    "visual_encoder.cls_token": "visual.class_embedding",
    "visual_encoder.pos_embed": "visual.positional_embedding",
    "visual_encoder.patch_embed.proj.": "visual.conv1.",
    "visual_encoder.norm.": "visual.ln_post.",
    "vision_proj.": "visual.proj.",
    "text_encoder.embeddings.word_embeddings.": "bert.word_embedding.",
    "text_encoder.embeddings.position_embeddings.weight": "bert.position_embedding",
    "text_encoder.embeddings.LayerNorm.": "bert.norm.",
    "text_proj.": "text_proj.",
}
_BLOCK = {
    "norm1.": "ln_1.",
    "norm2.": "ln_2.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_LAYER = {theirs: ours for ours, theirs in LAYER.items() if ours.startswith(("attention.", "of_text."))}
"""Prefixes of their names and ours: of all, within a block of the ViT, within a layer of BERT."""

_BLOCKS = (
    (r"visual_encoder\.blocks\.(\d+)\.", "visual.transformer.resblocks.", _BLOCK),
    (r"text_encoder\.encoder\.layer\.(\d+)\.", "bert.layers.", _LAYER),
    (r"()", "", _WHOLE),
)


def is_blip4cir(content: Any) -> bool:
    """Whether this is BLIP, or its tuned text encoder."""
    return _base(content) is not None or _tuned(content) is not None


def load_blip4cir(
    files: Sequence[tuple[Any, str]], vocabulary: str | os.PathLike[str] | None
) -> TrainedModel:
    """Builds the model that files make together, in any order.

    Args:
        files: contents and paths.
        vocabulary: BERT's word pieces, see `blip_tokenizer`.

    Raises:
        CheckpointError: a file is missing, twice there or foreign, or the files do not fit each other.
    """
    base, base_path = _one(files, _base, "BLIP's weights")
    tuned, tuned_path = _one(files, _tuned, "a tuned text encoder")
    combiner, combiner_path = _one(files, _combiner, "a Combiner")
    for content, where in files:
        if all(part(content) is None for part in (_base, _tuned, _combiner)):
            raise CheckpointError(f"{where} does not belong to a model of Bi-BLIP4CIR; leave it out")
    if base is None:
        raise CheckpointError(
            f"{tuned_path} is a text encoder of Bi-BLIP4CIR and holds no image encoder; give BLIP's "
            "model_base.pth as another file"
        )
    if tuned is not None and not all(name in tuned for name in _TUNED_TELLING):
        raise CheckpointError(
            f"{tuned_path} holds no text encoder under {_TUNED}; expected text_encoder.* in it"
        )
    read = _read(base, base_path) | _read(tuned or {}, tuned_path)
    sizes = _sizes(read, base_path)
    weights = {f"pair.{name}": value for name, value in read.items()} | {"logit_scale": torch.zeros(())}
    config: dict[str, Any] = {"system": "sum", "pair": sizes, "unit": False}
    epochs = [content.get("epoch") for content, _ in files if isinstance(content, Mapping)]
    if combiner is not None:
        own, renamed = combiner_weights(combiner, sizes["embed_dim"], combiner_path, base_path)
        config = {"system": "combiner", "pair": sizes, **own}
        weights |= {name: value.float() for name, value in renamed.items() if isinstance(value, Tensor)}
    where = " with ".join(path for path in (combiner_path, tuned_path, base_path) if path)
    model = build_fitting(config, weights, where)
    restore_weights(model, weights, where)
    # The prompt is of the tuned encoder; BLIP itself has never seen it.
    prompt = _FORWARD if tuned is not None or combiner is not None else ""
    parts = (normalizers.Replace(Regex("and"), f"and {prompt} "),) if prompt else ()
    tokenizer = blip_tokenizer(vocabulary, sizes["vocabulary_size"], base_path, parts, prompt)
    steps = [
        {"op": "target_pad", "ratio": 1.25},
        {"op": "resize", "size": _SIZE, "interpolation": "bicubic"},
        {"op": "center_crop", "size": _SIZE},
        {"op": "to_rgb"},
    ]
    image = {"kind": "pixels", "height": _SIZE, "width": _SIZE, "exif_orientation": True, "steps": steps}
    text = {
        "pad_id": 0,
        "unk_id": tokenizer.token_to_id("[UNK]"),
        "max_tokens": min(_WORDS, sizes["positions"]),
        "captions": "and:clip4cir",
    }
    provenance: dict[str, Any] = {
        "format": "Bi-BLIP4CIR" if prompt else "BLIP",
        "weights_licence": "not stated in the file",
        "data_licence": "not stated in the file",
    }
    known = [epoch for epoch in epochs if isinstance(epoch, int)]
    return TrainedModel(model, tokenizer, image, text, provenance | ({"epoch": known[0]} if known else {}))


def _base(content: Any) -> Mapping[str, Any] | None:
    found = content.get("model") if isinstance(content, Mapping) else None
    whole = isinstance(found, Mapping) and all(isinstance(found.get(name), Tensor) for name in _TELLING)
    return found if whole else None


def _tuned(content: Any) -> Mapping[str, Any] | None:
    found = content.get(_TUNED) if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _combiner(content: Any) -> Mapping[str, Any] | None:
    found = content.get("Combiner") if isinstance(content, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _one(files: Sequence[tuple[Any, str]], part: Any, what: str) -> tuple[Mapping[str, Any] | None, str]:
    """The content and path of the file that is a part, if one is."""
    found = [(part(content), where) for content, where in files if part(content) is not None]
    if len(found) > 1:
        raise CheckpointError(f"{found[0][1]} and {found[1][1]} are both {what}; give one")
    return found[0] if found else (None, "")


def _read(state: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The weights of both encoders under our names, in float32, without what looks at images from texts."""
    found = {}
    for name, value in state.items():
        ours = renamed(str(name).removeprefix("module."), _BLOCKS)
        if ours is not None and isinstance(value, Tensor):
            found[ours] = as_floats(str(name), value, where)
    name = "visual.class_embedding"
    if name in found and found[name].shape[:-1].numel() == 1:
        found[name] = found[name].reshape(-1)
    name = "visual.positional_embedding"
    if name in found:
        first, _, _ = shape(found, name, 3, where)
        patch = shape(found, "visual.conv1.weight", 4, where)[-1]
        if first != 1 or patch > _SIZE:
            raise CheckpointError(f"{where}: patches of {patch} pixels, or their places, are not a ViT's")
        found[name] = _stretched(found[name], _SIZE // patch, where)
    return found


def _stretched(places: Tensor, side: int, where: str) -> Tensor:
    """Places (1, 1 + n, W) of a square grid as those of a grid of another side, (1 + side ** 2, W)."""
    first, grid = places[0, :1], places[:, 1:]
    old = side_of(places.shape[1], where)
    if old == side:
        return places[0]
    square = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    finer = torch.nn.functional.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return torch.cat([first, finer.permute(0, 2, 3, 1).reshape(side * side, -1)])


def _sizes(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The `pair` table of a configuration, from names and shapes; heads have 64 values, as published."""
    vision, _, patch, _ = shape(weights, "visual.conv1.weight", 4, where)
    vocabulary, width = shape(weights, "bert.word_embedding.weight", 2, where)
    return {
        "family": "blip",
        "embed_dim": shape(weights, "visual.proj.weight", 2, where)[0],
        "image_size": _SIZE,
        "patch_size": patch,
        "vision_layers": count(weights, r"visual\.transformer\.resblocks\.(\d+)\."),
        "vision_width": vision,
        "vision_heads": max(1, vision // 64),
        "vision_mlp": shape(weights, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2, where)[0],
        "vocabulary_size": vocabulary,
        "positions": shape(weights, "bert.position_embedding", 2, where)[0],
        "text_width": width,
        "text_layers": count(weights, r"bert\.layers\.(\d+)\."),
        "text_heads": max(1, width // 64),
        "text_mlp": shape(weights, "bert.layers.0.of_text.inner.weight", 2, where)[0],
    }
