"""Preprocessing of the systems, as `image` and `text` of a bundle's manifest.

All of it turns photographs upright as their EXIF tag says. The authors' loaders do not, which differs on
tagged files alone; `with_exif_orientation` gives their reading.
"""

from __future__ import annotations

import json
from typing import Any

from cir_infer.bundle.manifest import (
    FORMAT,
    FORMAT_VERSION,
    TOKENIZER_NAME,
    FeatureInput,
    Manifest,
    PixelInput,
    TextInput,
)
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.errors import BundleError, UsageError

__all__ = [
    "check_inputs",
    "feature_input",
    "padded_crop",
    "plain_resize",
    "text_input",
    "with_exif_orientation",
    "word_text",
]


def padded_crop(size: int = 224, resize: int = 256) -> dict[str, Any]:
    """ARTEMIS: pad with white to a square, resize, crop the centre."""
    return {
        "kind": "pixels",
        "height": size,
        "width": size,
        "exif_orientation": True,
        "steps": [
            {"op": "to_rgb"},
            {"op": "pad_square", "fill": 255, "rounding": "artemis"},
            {"op": "resize", "size": resize, "interpolation": "bilinear"},
            {"op": "center_crop", "size": size},
        ],
    }


def plain_resize(size: int) -> dict[str, Any]:
    """Square images, such as rendered scenes, at once to size x size; others are padded with white first."""
    return {
        "kind": "pixels",
        "height": size,
        "width": size,
        "exif_orientation": True,
        "steps": [
            {"op": "to_rgb"},
            {"op": "pad_square", "fill": 255, "rounding": "artemis"},
            {"op": "resize", "size": [size, size], "interpolation": "bilinear"},
        ],
    }


def with_exif_orientation(image: dict[str, Any], follow: bool) -> dict[str, Any]:
    """The same preprocessing with photographs turned upright, or left as their pixels lie.

    Raises:
        UsageError: it is of pre-extracted features, which nobody turns.
    """
    if image["kind"] != "pixels":
        raise UsageError(
            "the model takes pre-extracted features; leave --exif-orientation and --no-exif-orientation out"
        )
    return {**image, "exif_orientation": follow}


def feature_input(size: int) -> dict[str, Any]:
    """Pre-extracted features of `size` values."""
    return {"kind": "features", "size": size}


def word_text(max_tokens: int = 512) -> dict[str, Any]:
    """Word-level texts of `cir_export.tokenization`; two captions become a pair."""
    return {"pad_id": 0, "unk_id": 4, "max_tokens": max_tokens, "captions": "pair"}


def check_inputs(image: dict[str, Any], text: dict[str, Any]) -> PixelInput | FeatureInput:
    """Asserts that a manifest can hold these two, and gives the first as the runtime reads it.

    Raises:
        BundleError: a field is unknown, missing or of a wrong value; the message names it.
    """
    return _read(image, text).image


def text_input(text: dict[str, Any]) -> TextInput:
    """`text` as the runtime reads it; see `check_inputs`."""
    found = _read(feature_input(1), text).text
    assert found is not None  # only a manifest without texts has none
    return found


def _read(image: dict[str, Any], text: dict[str, Any]) -> Manifest:
    files = {"image": "image.onnx", "text": "text.onnx", "compose": "compose.onnx"}
    members = {name: {"bytes": 1, "sha256": "0" * 64} for name in (*files.values(), TOKENIZER_NAME)}
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "system": "any",
        "created_by": "any",
        "embedding_dim": 1,
        "terms": ["any"],
        "weighted": False,
        "precision": "float32",
        "image": image,
        "text": text,
        "graphs": files,
        "members": members,
        "parity": {},
        "provenance": {},
    }
    try:
        content = json.dumps(manifest)
    except (TypeError, ValueError) as error:
        raise BundleError(f"the preprocessing is not plain JSON ({error})") from error
    return read_manifest(content)
