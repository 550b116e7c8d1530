"""MagicLens' `magic_lens_clip_base.pkl` and `_large.pkl`: flax weights, converted once.

Their names (public with the code, Apache-2.0) are those of `scenic`'s CLIP and of its own layers. Kernels are
(inputs, outputs), heads have axes of their own, and a norm's scale is what is added to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cir_export.checkpoints.flax import FLAX
from cir_export.checkpoints.prefixes import as_floats, shape, side_of
from cir_export.clip_tokenization import CONTEXT_LENGTH, build_clip_tokenizer
from cir_export.model_file import TrainedModel, build_fitting, restore_weights
from cir_export.models.magiclens import MagicLens
from cir_infer.errors import CheckpointError, shown

__all__ = ["is_magiclens", "load_magiclens"]

_CLIP, _LAYERS, _POOLER = "clip/", "multimodal_encoder/", "contrastive_multimodal_pooler/"
_WORDS = 49408

_SOFTPLUS_0 = 1.442695041
"""1 / softplus(0), so that a scale of 0 is the usual 1 / sqrt of the head's width."""


def is_magiclens(content: Any) -> bool:
    """Whether this is what `read_checkpoint_file` gives for weights of flax."""
    return isinstance(content, dict) and set(content) == {FLAX}


def load_magiclens(content: dict[str, dict[str, Tensor]], where: str) -> TrainedModel:
    """Builds the model of a checkpoint.

    Args:
        content: see `is_magiclens`.
        where: its path, for messages.

    Raises:
        CheckpointError: the weights are of another model, of another shape, or one is missing or left over.
    """
    weights = _Weights(content[FLAX], where)
    config = _config(weights, where)
    filled = {"logit_scale": torch.zeros(()), "empty_text": torch.zeros(config["pair"]["embed_dim"])}
    for name, value in _converted(weights, config):
        filled[name] = value
    weights.done()
    model = build_fitting(config, filled, where)
    restore_weights(model, filled, where)
    tokenizer = build_clip_tokenizer()
    empty = tokenizer.encode("").ids
    assert isinstance(model, MagicLens)  # as its configuration says
    model.keep_empty_text(torch.tensor([empty]), torch.tensor([len(empty)]))
    size = config["pair"]["image_size"]
    steps = [
        {"op": "to_rgb"},
        {"op": "divide_by_maximum"},
        {"op": "resize", "size": [size, size], "interpolation": "bilinear"},
    ]
    image = {"kind": "pixels", "height": size, "width": size, "exif_orientation": True, "steps": steps}
    text = {"pad_id": 0, "unk_id": None, "max_tokens": CONTEXT_LENGTH, "captions": " and "}
    provenance = {
        "format": "MagicLens",
        "weights_licence": "not stated in the file; the authors publish theirs under CC BY 4.0",
        "data_licence": "not stated in the file; pairs of images of web pages, which are not published",
    }
    return TrainedModel(model, tokenizer, image, text, provenance)


class _Weights:
    """The weights by their name below "params/", taken one by one; none may be left over."""

    def __init__(self, weights: dict[str, Tensor], where: str) -> None:
        self._where = where
        self._rest = {name.removeprefix("params/"): value for name, value in weights.items()}
        for part in (_CLIP, _LAYERS, _POOLER):
            if not any(name.startswith(part) for name in self._rest):
                raise CheckpointError(
                    f"{where} holds weights of flax and none under {part[:-1]}; expected MagicLens'"
                )

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        return shape(self._rest, name, dims, self._where)

    def count(self, start: str) -> int:
        """How many numbered parts begin so."""
        numbers = {name.removeprefix(start).split("/")[0] for name in self._rest if name.startswith(start)}
        if numbers != {str(number) for number in range(len(numbers))} or not numbers:
            raise CheckpointError(
                f"{self._where}: the layers {start}N are not numbered from 0 up; expected MagicLens' names"
            )
        return len(numbers)

    def take(self, name: str, dims: int) -> Tensor:
        self.shape(name, dims)
        return as_floats(name, self._rest.pop(name), self._where)

    def norm(self, name: str, added: float = 0.0) -> dict[str, Tensor]:
        """A layer norm; `added` to its scale."""
        return {"weight": self.take(f"{name}/scale", 1) + added, "bias": self.take(f"{name}/bias", 1)}

    def dense(self, kernel: str, bias: str) -> dict[str, Tensor]:
        return {"weight": self.take(kernel, 2).T, "bias": self.take(bias, 1)}

    def into_heads(self, kernel: str, bias: str) -> dict[str, Tensor]:
        """(D, heads, values), whose heads stand one after the other."""
        return {"weight": self.take(kernel, 3).flatten(1).T, "bias": self.take(bias, 2).flatten()}

    def done(self) -> None:
        self._rest.pop(f"{_CLIP}logit_scale", None)
        if self._rest:
            raise CheckpointError(
                f"{self._where} holds {shown(min(self._rest), 100)}, which MagicLens does not have"
            )


def _config(weights: _Weights, where: str) -> dict[str, Any]:
    visual, text = f"{_CLIP}visual/", f"{_CLIP}text/"
    patch, _, _, width = weights.shape(f"{visual}conv1/kernel", 4)
    side = side_of(weights.shape(f"{visual}positional_embedding", 2)[0], where)
    context, text_width = weights.shape(f"{text}positional_embedding", 2)
    vocabulary = weights.shape(f"{text}token_embedding/embedding", 2)[0]
    if (vocabulary, context) != (_WORDS, CONTEXT_LENGTH):
        raise CheckpointError(
            f"{where}: its CLIP reads {vocabulary} tokens, {context} a text; expected {_WORDS} and "
            f"{CONTEXT_LENGTH}"
        )
    block, layer = "transformer/resblocks_", f"{_LAYERS}x_layers_"
    _, heads, _ = weights.shape(f"{layer}0/self_attention/query/w", 3)
    _, pooling_heads, inside = weights.shape(f"{_POOLER}pool_attn/query/w", 3)
    if heads != pooling_heads:
        raise CheckpointError(
            f"{where} has {heads} heads in its layers and {pooling_heads} in its pooling; expected as many"
        )
    pair = {
        "family": "clip",
        "embed_dim": weights.shape(f"{visual}proj/kernel", 2)[1],
        "image_size": patch * side,
        "vision_layers": (weights.count(visual + block),),
        "vision_width": width,
        "vision_heads": weights.shape(f"{visual}{block}0/attn/query/kernel", 3)[1],
        "patch_size": patch,
        "context_length": context,
        "vocabulary_size": vocabulary,
        "text_width": text_width,
        "text_heads": weights.shape(f"{text}{block}0/attn/query/kernel", 3)[1],
        "text_layers": weights.count(text + block),
        "vision_mlp": weights.shape(f"{visual}{block}0/mlp/c_fc/kernel", 2)[1],
        "text_mlp": weights.shape(f"{text}{block}0/mlp/c_fc/kernel", 2)[1],
    }
    return {
        "system": "magiclens",
        "pair": pair,
        "layers": weights.count(layer),
        "heads": heads,
        "hidden": weights.shape(f"{layer}0/ff_layer/ffn_layer1/linear/w", 2)[1],
        "pooled": heads * inside,
    }


def _converted(weights: _Weights, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every weight of the system, by our name."""
    for ours, theirs, layers in (
        ("pair.visual.", f"{_CLIP}visual/", config["pair"]["vision_layers"][0]),
        ("pair.", f"{_CLIP}text/", config["pair"]["text_layers"]),
    ):
        yield f"{ours}positional_embedding", weights.take(f"{theirs}positional_embedding", 2)
        for number in range(layers):
            block = _block(weights, f"{theirs}transformer/resblocks_{number}")
            yield from _named(f"{ours}transformer.resblocks.{number}", block)
    visual, text = f"{_CLIP}visual/", f"{_CLIP}text/"
    yield "pair.visual.conv1.weight", weights.take(f"{visual}conv1/kernel", 4).permute(3, 2, 0, 1)
    yield "pair.visual.class_embedding", weights.take(f"{visual}class_embedding", 1)
    yield "pair.visual.proj", weights.take(f"{visual}proj/kernel", 2)
    yield "pair.token_embedding.weight", weights.take(f"{text}token_embedding/embedding", 2)
    yield "pair.text_projection", weights.take(f"{text}text_projection/kernel", 2)
    for ours, theirs in (
        ("pair.visual.ln_pre", f"{visual}ln_pre"),
        ("pair.visual.ln_post", f"{visual}ln_post"),
        ("pair.ln_final", f"{text}ln_final"),
    ):
        yield from _named(ours, weights.norm(theirs))
    for number in range(config["layers"]):
        ours, theirs = f"layers.{number}", f"{_LAYERS}x_layers_{number}"
        yield from _named(f"{ours}.norm_1", weights.norm(f"{theirs}/layer_norm", 1.0))
        yield from _named(f"{ours}.norm_2", weights.norm(f"{theirs}/ff_layer/layer_norm", 1.0))
        yield from _named(f"{ours}.attention", _attention(weights, f"{theirs}/self_attention"))
        for part, layer in (("inner", "ffn_layer1"), ("outer", "ffn_layer2")):
            kernel = f"{theirs}/ff_layer/{layer}"
            yield from _named(f"{ours}.{part}", weights.dense(f"{kernel}/linear/w", f"{kernel}/bias/b"))
    yield from _named("pooling", _attention(weights, f"{_POOLER}pool_attn"))
    yield from _named("pooling_norm", weights.norm(f"{_POOLER}pool_attn_ln", 1.0))
    scale = weights.take(f"{_POOLER}pool_attn/per_dim_scale/per_dim_scale", 1)
    yield "pooling.scale", torch.nn.functional.softplus(scale) * (_SOFTPLUS_0 / len(scale) ** 0.5)
    yield "pooling_query", weights.take(f"{_POOLER}pooling_attn_query", 2)


def _named(prefix: str, weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        yield f"{prefix}.{name}", value


def _block(weights: _Weights, name: str) -> dict[str, Tensor]:
    """A block of either tower of CLIP, whose attention is packed here."""
    packed = [
        weights.into_heads(f"{name}/attn/{part}/kernel", f"{name}/attn/{part}/bias")
        for part in ("query", "key", "value")
    ]
    out = weights.take(f"{name}/attn/out/kernel", 3)
    found = {
        "attn.in_proj_weight": torch.cat([part["weight"] for part in packed]),
        "attn.in_proj_bias": torch.cat([part["bias"] for part in packed]),
        "attn.out_proj.weight": out.flatten(0, 1).T,
        "attn.out_proj.bias": weights.take(f"{name}/attn/out/bias", 1),
    }
    for part in ("ln_1", "ln_2"):
        found |= dict(_named(part, weights.norm(f"{name}/{part}")))
    for part in ("mlp/c_fc", "mlp/c_proj"):
        dense = weights.dense(f"{name}/{part}/kernel", f"{name}/{part}/bias")
        found |= dict(_named(part.replace("/", "."), dense))
    return found


def _attention(weights: _Weights, name: str) -> dict[str, Tensor]:
    """An attention of their own layers, whose output has its axes the other way round."""
    found: dict[str, Tensor] = {}
    for part in ("query", "key", "value"):
        found |= dict(_named(part, weights.into_heads(f"{name}/{part}/w", f"{name}/{part}/b")))
    return found | {
        "out.weight": weights.take(f"{name}/post/w", 3).flatten(1),
        "out.bias": weights.take(f"{name}/post/b", 1),
    }
