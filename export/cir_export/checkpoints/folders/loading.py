"""Which model a folder holds, by what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cir_export.checkpoints.folders.blip2 import load_blip2
from cir_export.checkpoints.folders.files import json_of, licence_of, need_json
from cir_export.checkpoints.folders.hugging_face import load_clip, load_siglip
from cir_export.checkpoints.folders.open_clip import CONFIG, load_open_clip
from cir_export.checkpoints.folders.weights import HUGGING_FACE, refuse_adapters
from cir_export.hub import fetch, is_hub_name
from cir_export.model_file import TrainedModel
from cir_export.presets import preset_of
from cir_infer.errors import CheckpointError, UsageError, shown
from cir_infer.foreign import has_file

__all__ = ["SYSTEMS", "load_folder"]

SYSTEMS = {"sum": "sum", "image-only": "sum-image-only", "text-only": "sum-text-only"}
"""What a pair of towers can be, by what a user calls it."""

_BLIP2 = {"text-only": "blip2-text-only"}
_CLASSES = {
    "CLIPModel": (load_clip, SYSTEMS),
    "SiglipModel": (load_siglip, SYSTEMS),
    "Blip2ForImageTextRetrieval": (load_blip2, _BLIP2),
}
"""What loads a class, and what it can be; the first is what it is unless a user says otherwise."""

_TYPES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_ELSEWHERE = {
    "Siglip2Model": "SigLIP 2 with images of any shape; the ones of a fixed size (SiglipModel) are read",
    "CLIPVisionModelWithProjection": "the image tower alone; a composed query needs both",
    "CLIPTextModelWithProjection": "the text tower alone; a composed query needs both",
    "Blip2ForConditionalGeneration": "BLIP-2 that writes texts; Blip2ForImageTextRetrieval, which compares "
    "them with images, is read",
}

_UNSTATED = "not stated in the folder"


def load_folder(folder: str | os.PathLike[str], system: str | None = None) -> TrainedModel:
    """Loads a model of transformers or open_clip from its folder as it lies on disk.

    Args:
        folder: OWNER/NAME on the Hugging Face Hub; or a folder with config.json, model.safetensors (or its
            parts and their index), preprocessor_config.json and tokenizer.json; or with
            open_clip_config.json and open_clip_model.safetensors.
        system: one of `SYSTEMS`; None is "sum", and "text-only" of a BLIP-2, which is nothing else.

    Raises:
        CheckpointError: a part is missing or damaged, the parts are not of one model, or the model is of
            another class.
        UsageError: no such system.
    """
    name = str(folder)
    if system is not None and system not in SYSTEMS:
        raise UsageError(f"--system {shown(system)}; expected one of {', '.join(SYSTEMS)}")
    known = preset_of(name) if is_hub_name(name) else None
    folder = fetch(name) if is_hub_name(name) else Path(folder)
    refuse_adapters(folder)
    config = json_of(folder, "config.json")
    kind = None if config is None else _class_of(config)
    whole = any(
        has_file(folder / f"{name}{end}", CheckpointError)
        for name in HUGGING_FACE
        for end in ("", ".index.json")
    )
    if has_file(folder / CONFIG, CheckpointError) and not (kind in _CLASSES and whole):
        trained, kind = load_open_clip(folder, SYSTEMS[system or "sum"]), "open_clip"
    elif kind in _CLASSES:
        load, systems = _CLASSES[kind]
        chosen = system or next(iter(systems))
        if chosen not in systems:
            raise UsageError(f"--system {chosen}: a {kind} is {' or '.join(systems)} alone")
        trained = load(folder, config or {}, systems[chosen])
    else:
        need_json(folder, "config.json", "which says what the model is")
        why = f" ({_ELSEWHERE[kind]})" if kind in _ELSEWHERE else ""
        raise CheckpointError(
            f"{folder} holds a {shown(kind)}{why}; expected one of {', '.join(_CLASSES)}, or an open_clip "
            f"folder. "
            "`cir-export --list` names models that are read"
        )
    trained.provenance |= {
        "format": f"Hugging Face {kind}" if kind != "open_clip" else "open_clip",
        "weights_licence": licence_of(folder) or (known.weights_licence if known else _UNSTATED),
        "data_licence": known.data_licence if known else _UNSTATED,
    }
    if is_hub_name(name):
        trained.provenance["source"] = name
    return trained


def _class_of(config: dict[str, Any]) -> str | None:
    """The class that config.json names, or that its type stands for."""
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        # Repositories with code of their own name its class; the weights are those of the type.
        return named[0] if named[0] in _CLASSES else _TYPES.get(str(config.get("model_type")), named[0])
    kind = config.get("model_type")
    return _TYPES.get(kind, kind) if isinstance(kind, str) else None
