"""Models of CLIP4Cir from their files: CLIP, fine-tuned or not, and the Combiner's checkpoint.

- `combiner*.pt`: `{"epoch", "Combiner": weights}`. It needs the CLIP that it was trained on.
- CLIP: see `cir_export.checkpoints.clip`. Without a Combiner the system is the sum of stage 1.
- `training_hyperparameters.json`, which lies beside: says how images were padded. Without it CLIP4Cir's
  default is taken, target padding with ratio 1.25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cir_export.checkpoints.clip import (
    as_float32,
    clip_config,
    clip_weights,
    is_open_clip_config,
    round_to_float16,
)
from cir_export.clip_tokenization import CONTEXT_LENGTH, build_clip_tokenizer, clip_text
from cir_export.model_file import TrainedModel, restore_weights
from cir_export.models import build_model
from cir_infer.errors import CheckpointError, CirError, shown

__all__ = ["combiner_weights", "is_clip4cir", "load_clip4cir"]

_RENAMED = {
    "text_projection_layer.": "combiner.text.",
    "image_projection_layer.": "combiner.image.",
    "combiner_layer.": "combiner.hidden.",
    "output_layer.": "combiner.out.",
    "dynamic_scalar.0.": "combiner.scalar_hidden.",
    "dynamic_scalar.3.": "combiner.scalar_out.",
}

_DEFAULT_RATIO = 1.25
_MOST_RATIO = 100


@dataclass
class _Parts:
    """What each of the files is: its content and its path."""

    combiner: tuple[Mapping[str, Any], str] | None = None
    clip: tuple[dict[str, Tensor], bool, str] | None = None
    open_clip: tuple[Mapping[str, Any], str] | None = None
    settings: tuple[Mapping[str, Any], str] | None = None


def is_clip4cir(content: Any) -> bool:
    """Whether this is one of the files that a model of CLIP4Cir is made of."""
    return (
        _is_combiner(content)
        or clip_weights(content) is not None
        or is_open_clip_config(content)
        or _is_settings(content)
    )


def load_clip4cir(files: Sequence[tuple[Any, str]], round_clip_to_float16: bool = False) -> TrainedModel:
    """Builds the model that files make together, in any order.

    Args:
        files: contents and paths.
        round_clip_to_float16: round CLIP's weights as the authors' code does on a GPU.

    Raises:
        CheckpointError: a file is missing, twice there or foreign, or the files do not fit each other.
    """
    parts = _sort(files)
    if parts.clip is None:
        where = (parts.combiner or parts.settings or parts.open_clip or (None, "the model"))[1]
        raise CheckpointError(
            f"{where} holds no CLIP; give the CLIP that it was trained on as another file: tuned_clip_*.pt, "
            "or OpenAI's or open_clip's weights if it was not fine-tuned"
        )
    weights, openai, where = parts.clip
    open_clip = None if parts.open_clip is None else parts.open_clip[0]
    clip = clip_config(weights, openai, open_clip, where)
    if (clip["vocabulary_size"], clip["context_length"]) != (49408, CONTEXT_LENGTH):
        raise CheckpointError(
            f"{where}: CLIP reads {clip['vocabulary_size']} tokens, {clip['context_length']} a text; "
            f"expected OpenAI's tokeniser with 49408 and {CONTEXT_LENGTH}"
        )
    weights = as_float32(weights)
    if round_clip_to_float16:
        weights = round_to_float16(weights)
    named = {f"clip.{name}": value for name, value in weights.items()}
    config: dict[str, Any] = {"system": "clip4cir-sum", "clip": clip}
    if parts.combiner is not None:
        content, combiner_path = parts.combiner
        sizes, renamed = combiner_weights(content["Combiner"], clip["embed_dim"], combiner_path, where)
        config |= {"system": "clip4cir-combiner", **sizes}
        named |= renamed
        where = f"{combiner_path} with {where}"
    try:
        model = build_model(config)
    except CirError as error:
        raise CheckpointError(f"{where}: {error}") from error
    # The authors' scale of 100 in training is a constant; here it has no part in the scores.
    restore_weights(model, {"logit_scale": model.logit_scale.detach(), **_with_counters(named, model)}, where)
    padding, said = _padding(parts.settings)
    image = {
        "kind": "pixels",
        "height": clip["image_size"],
        "width": clip["image_size"],
        "exif_orientation": True,
        "steps": [
            *padding,
            {"op": "resize", "size": clip["image_size"], "interpolation": "bicubic"},
            {"op": "center_crop", "size": clip["image_size"]},
            {"op": "to_rgb"},
        ],
    }
    provenance: dict[str, Any] = {"format": "CLIP4Cir", "image_padding": said}
    epoch = (parts.combiner or ({},))[0].get("epoch")
    if isinstance(epoch, int):
        provenance["epoch"] = epoch
    if round_clip_to_float16:
        provenance["clip_weights"] = "rounded to float16"
    return TrainedModel(model, build_clip_tokenizer(), image, clip_text(), provenance)


def _is_combiner(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("Combiner"), Mapping)


def _is_settings(content: Any) -> bool:
    return isinstance(content, Mapping) and "clip_model_name" in content


def _sort(files: Sequence[tuple[Any, str]]) -> _Parts:
    parts = _Parts()
    for content, where in files:
        clip = clip_weights(content)
        part: tuple[Any, ...]
        if _is_combiner(content):
            name, part = "combiner", (content, where)
        elif is_open_clip_config(content):
            name, part = "open_clip", (content, where)
        elif _is_settings(content):
            name, part = "settings", (content, where)
        elif clip is not None:
            name, part = "clip", (*clip, where)
        else:
            raise CheckpointError(f"{where} does not belong to a model of CLIP4Cir; leave it out")
        if getattr(parts, name) is not None:
            raise CheckpointError(
                f"{getattr(parts, name)[-1]} and {where} are the same part of a model; give one"
            )
        setattr(parts, name, part)
    return parts


def combiner_weights(
    weights: Mapping[str, Any], embed_dim: int, where: str, clip_path: str
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """A Combiner's sizes, and its weights under our names.

    Raises:
        CheckpointError: a layer is missing, or it combines embeddings of another width.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, Tensor)}
    projection, hidden = shapes.get("text_projection_layer.weight"), shapes.get("combiner_layer.weight")
    if projection is None or hidden is None or len(projection) != 2 or len(hidden) != 2:
        raise CheckpointError(f"{where}: the Combiner's text_projection_layer or combiner_layer is missing")
    if projection[1] != embed_dim:
        raise CheckpointError(
            f"{where} combines features of {projection[1]} values and the CLIP of {clip_path} gives "
            f"{embed_dim}; give the CLIP that this Combiner was trained on"
        )
    renamed = {}
    for name, value in weights.items():
        old = next((prefix for prefix in _RENAMED if str(name).startswith(prefix)), None)
        renamed[str(name) if old is None else _RENAMED[old] + str(name).removeprefix(old)] = value
    return {"projection_dim": projection[0], "hidden_dim": hidden[0]}, renamed


def _with_counters(weights: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """OpenAI's archives leave out the counters of batch normalisation, which evaluation does not read."""
    counters = {n: v for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
    return counters | weights


def _padding(settings: tuple[Mapping[str, Any], str] | None) -> tuple[list[dict[str, Any]], str]:
    """The preprocessing in front of CLIP's own, and its name."""
    if settings is None:
        return [{"op": "target_pad", "ratio": _DEFAULT_RATIO}], f"targetpad {_DEFAULT_RATIO}, the default"
    content, where = settings
    transform, ratio = content.get("transform"), content.get("target_ratio", _DEFAULT_RATIO)
    if transform == "targetpad" and type(ratio) in (int, float) and 1 <= ratio <= _MOST_RATIO:
        return [{"op": "target_pad", "ratio": float(ratio)}], f"targetpad {float(ratio)}"
    if transform == "squarepad":
        return [{"op": "pad_square", "fill": 0, "rounding": "clip4cir"}], "squarepad"
    if transform == "clip":
        return [], "clip"
    raise CheckpointError(
        f"{where}: transform {shown(transform)} with target_ratio {shown(ratio)} is not known; expected "
        f"targetpad with a ratio from 1 to {_MOST_RATIO}, squarepad or clip"
    )
