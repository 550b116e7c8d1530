"""Folders of open_clip: `open_clip_config.json` beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cir_export.checkpoints.clip import check_architecture, clip_config, clip_weights
from cir_export.checkpoints.folders.files import need_json
from cir_export.checkpoints.folders.weights import OPEN_CLIP, open_weights
from cir_export.clip_tokenization import CONTEXT_LENGTH, build_clip_tokenizer
from cir_export.model_file import TrainedModel, build_fitting, restore_weights
from cir_infer.errors import CheckpointError, CirError, shown

__all__ = ["CONFIG", "load_open_clip"]

CONFIG = "open_clip_config.json"


def load_open_clip(folder: Path, system: str) -> TrainedModel:
    """A CLIP of open_clip, with OpenAI's tokenizer and open_clip's own preprocessing.

    Args:
        folder: of the model.
        system: "sum", "sum-image-only" or "sum-text-only".

    Raises:
        CheckpointError: a part is missing or of another architecture.
    """
    said = need_json(folder, CONFIG, "which says what the model is")
    where = str(folder / CONFIG)
    if not isinstance(said.get("model_cfg"), Mapping):
        raise CheckpointError(f"{where} has no model_cfg; expected the description of the towers")
    check_architecture(said, where)
    weights = open_weights(folder, OPEN_CLIP)
    read = {
        name: weights.tensor(name)
        for name in weights.names
        if not name.endswith(("attn_mask", "num_batches_tracked"))
    }
    named = clip_weights(read)
    if named is None:
        raise CheckpointError(f"{weights.where} does not hold both towers of a CLIP")
    clip = {"family": "clip", **clip_config(named[0], False, said, weights.where)}
    if (clip["vocabulary_size"], clip["context_length"]) != (49408, CONTEXT_LENGTH):
        raise CheckpointError(
            f"{weights.where}: CLIP reads {clip['vocabulary_size']} tokens, {clip['context_length']} a text; "
            f"expected OpenAI's tokenizer with 49408 and {CONTEXT_LENGTH}"
        )
    config: dict[str, Any] = {"system": system, "pair": clip, "unit": False}
    filled = {f"pair.{name}": value for name, value in named[0].items()}
    try:
        model = build_fitting(config, filled | {"logit_scale": torch.zeros(())}, weights.where)
    except CirError as error:
        raise CheckpointError(f"{weights.where}: {error}") from error
    counters = {n: v for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
    restore_weights(model, {"logit_scale": model.logit_scale.detach(), **counters, **filled}, weights.where)
    image = _image(said.get("preprocess_cfg", {}), clip["image_size"], where)
    text = {"pad_id": 0, "unk_id": None, "max_tokens": CONTEXT_LENGTH, "captions": " and "}
    return TrainedModel(model, build_clip_tokenizer(), image, text, {})


def _image(said: Any, size: int, where: str) -> dict[str, Any]:
    """open_clip's preprocessing for evaluation."""
    if not isinstance(said, Mapping):
        raise CheckpointError(f"{where}: preprocess_cfg is {shown(said)}; expected an object")
    mode, kind = said.get("resize_mode", "shortest"), said.get("interpolation", "bicubic")
    asked = said.get("size", size)
    if said.get("mode", "RGB") != "RGB":
        raise CheckpointError(f"{where}: mode {shown(said['mode'])}; expected RGB")
    if mode not in ("shortest", "squash") or kind not in ("bicubic", "bilinear"):
        raise CheckpointError(
            f"{where}: resize_mode {shown(mode)} with interpolation {shown(kind)}; expected shortest or "
            f"squash, "
            "bicubic or bilinear"
        )
    if asked not in (size, [size, size]):
        raise CheckpointError(f"{where}: size {shown(asked)} and the model takes {size} x {size}")
    resize = {"op": "resize", "size": [size, size] if mode == "squash" else size, "interpolation": kind}
    crop = [] if mode == "squash" else [{"op": "center_crop", "size": size}]
    steps = [resize, *crop, {"op": "to_rgb"}]
    return {"kind": "pixels", "height": size, "width": size, "exif_orientation": True, "steps": steps}
