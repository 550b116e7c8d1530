"""What each system needs of a configuration that was written for another: `cir-train --system NAME`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cir_export.models import MODELS
from cir_infer.errors import UsageError, shown

__all__ = ["image_size", "max_tokens", "model_for_system", "with_vocabulary"]

_CLIP = {
    "embed_dim": 256,
    "image_size": 96,
    "vision_layers": [1, 1, 1, 1],
    "vision_width": 16,
    "vision_heads": 8,
    "patch_size": 0,
    "context_length": 64,
    "text_width": 128,
    "text_heads": 4,
    "text_layers": 2,
}
"""A CLIP that trains on two CPU cores: its last map of 96 pixels is the 3 x 3 grid of the scenes."""


def model_for_system(model: Mapping[str, Any], system: str) -> dict[str, Any]:
    """The `[model]` table with another system, over the same trunk and text encoder where it has such.

    Args:
        model: the table of some system on pixels.
        system: the other system's name.

    Raises:
        UsageError: the system is not known.
    """
    if system not in MODELS:
        raise UsageError(
            f"--system {shown(system)} is not known; expected one of {', '.join(sorted(MODELS))}"
        )
    if MODELS[system].from_towers and not MODELS[system].trains_head:
        raise UsageError(
            f"--system {shown(system)} is made of the towers of a folder; give the folder to cir-export"
        )
    if system == model.get("system"):
        return dict(model)
    if MODELS[system].trains_head:
        return {"system": system, "pair": dict(model.get("pair", {}))}
    if system.startswith("clip"):
        return {"system": system, "clip": dict(model.get("clip", {}))}
    if "image" not in model or "text" not in model:
        raise UsageError(f"--system {system}: the configuration has no image and text encoder to share")
    image, text, dim = dict(model["image"]), dict(model["text"]), _size(model, "embedding_dim", 512)
    changed = {"system": system, "embedding_dim": dim, "image": image, "text": text}
    if system == "show-and-tell":
        text["encoder"] = "lstm-last"
        text.setdefault("hidden", dim)
    elif system == "sac":
        changed["text"] = {"hidden": dim} | {k: v for k, v in text.items() if k in ("word_dim", "hidden")}
    elif system == "maaf":
        changed["text"] = {"hidden": dim} | {k: v for k, v in text.items() if k in ("word_dim", "hidden")}
        changed |= {"heads": 4 if dim % 4 == 0 else 1}
        if image.get("pooling") == "grid":
            changed["cells"] = image.get("grid", 3)
    elif system == "cirplant":
        width = _size(text, "word_dim", 300)
        changed["text"] = {"width": width, "layers": 2, "heads": 4 if width % 4 == 0 else 1}
    elif system == "relationship" and image.get("pooling") == "grid":
        changed["cells"] = image.get("grid", 3)
    return changed


def with_vocabulary(model: Mapping[str, Any], size: int) -> dict[str, Any]:
    """The table with the size of the vocabulary; a CLIP's own may be larger than its tokenizer's.

    That of a pair is as its folder says.
    """
    if "pair" in model:
        return dict(model)
    if "clip" in model:
        clip = _clip(model)
        return {**model, "clip": {**clip, "vocabulary_size": max(size, _size(clip, "vocabulary_size", 0))}}
    return {**model, "text": {**model.get("text", {}), "vocabulary_size": size}}


def _clip(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The table of a CLIP; an empty one is the small one."""
    return model["clip"] or _CLIP


def image_size(model: Mapping[str, Any]) -> Any:
    """Height and width of the images, as the table says it, or None."""
    if "pair" in model:
        return model["pair"].get("image_size")
    if "clip" in model:
        return _clip(model).get("image_size")
    return model.get("image", {}).get("size")


def max_tokens(model: Mapping[str, Any]) -> int:
    """The longest text that the system reads.

    Raises:
        UsageError: it is no length.
    """
    if "clip" in model:
        return _size(_clip(model), "context_length", _CLIP["context_length"])
    if model.get("system") not in ("show-and-tell", "maaf", "cirplant"):
        return 512
    return _size(model if "max_words" in model else model.get("text", {}), "max_words", 64)


def _size(table: Mapping[str, Any], name: str, default: Any) -> int:
    """A size that is needed before the model is built, which judges all others."""
    value = table.get(name, default)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise UsageError(f"{name}: {shown(value)}; expected a whole number")
    return value
