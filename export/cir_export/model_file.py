"""The self-describing model file: configuration, weights, tokeniser and preprocessing in one `model.pt`.

A zip of tensors and plain values in PyTorch's format. It is read with `weights_only=True`: nothing in it
can execute.

    {"format": "cir-model", "version": 1, "created_by": "cir-infer 0.1.0",
     "config": {...}, "weights": {name: tensor}, "tokenizer": "...", "image": {...}, "text": {...},
     "provenance": {...}}

`image` and `text` are the same objects as in a bundle's manifest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cir_export.container import read_container, write_container
from cir_export.models import RetrievalModel, build_model
from cir_export.models.registry import layers_of
from cir_export.preprocessing import check_inputs
from cir_infer import __version__
from cir_infer.bundle.tokenizer_check import check_tokenizer
from cir_infer.errors import CheckpointError, CirError, UsageError, shown

__all__ = [
    "TrainedModel",
    "is_model_file",
    "load_model",
    "model_from_content",
    "restore_weights",
    "save_model",
]

FORMAT = "cir-model"
VERSION = 1
_PARTS = {"config": dict, "weights": dict, "tokenizer": str, "image": dict, "text": dict, "provenance": dict}


@dataclass
class TrainedModel:
    """A model with all that turns images and texts into its inputs.

    Attributes:
        model: in evaluation mode, float32.
        tokenizer: with cleaning and special tokens inside.
        image: preprocessing, `image` of a bundle's manifest.
        text: `text` of a bundle's manifest.
        provenance: where the weights come from: plain values, e.g. the data set, epochs and recall.
    """

    model: RetrievalModel
    tokenizer: Tokenizer
    image: dict[str, Any]
    text: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)


def save_model(path: str | os.PathLike[str], trained: TrainedModel, precision: str = "float32") -> None:
    """Writes a model file; an existing file is replaced at once or not at all.

    Args:
        path: where to.
        trained: what to write; `trained.model.config` must be what `build_model` was given.
        precision: "float32" or "float16", of the floating-point weights.

    Raises:
        CheckpointError: the file cannot be written, or a weight does not fit into float16.
    """
    dtype = {"float32": torch.float32, "float16": torch.float16}[precision]
    weights = {}
    for name, tensor in trained.model.state_dict().items():
        stored = tensor.detach().cpu()
        if stored.is_floating_point():
            stored = stored.to(dtype)
            if not torch.isfinite(stored).all():
                raise CheckpointError(f"weight {name} holds NaN or a value beyond {precision}; not written")
        weights[name] = stored
    content = {
        "format": FORMAT,
        "version": VERSION,
        "created_by": f"cir-infer {__version__}",
        "config": trained.model.config,
        "weights": weights,
        "tokenizer": trained.tokenizer.to_str(),
        "image": trained.image,
        "text": trained.text,
        "provenance": trained.provenance,
    }
    path = Path(path)
    try:
        write_container(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def load_model(path: str | os.PathLike[str]) -> TrainedModel:
    """Reads a model file. The model is in evaluation mode, float32, on the CPU.

    Raises:
        CheckpointError: not a model file, of a newer version, or its parts do not fit each other.
    """
    return model_from_content(read_container(path), str(path))


def is_model_file(content: Any) -> bool:
    """Whether this is the content of a model file, of any version."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def model_from_content(content: Any, where: str) -> TrainedModel:
    """As `load_model`, from what `read_container` gave."""
    if not is_model_file(content):
        raise CheckpointError(f"{where} is not a model file of cir-train; expected format {FORMAT!r}")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{where} is a model file of version {shown(content.get('version'))}; "
            f"this release reads {VERSION}"
        )
    for part, kind in _PARTS.items():
        if not isinstance(content.get(part), kind):
            raise CheckpointError(f"{where}: {part!r} is missing or not a {kind.__name__}")
    try:
        check_inputs(content["image"], content["text"])
        model = build_fitting(content["config"], content["weights"], where)
    except CheckpointError:
        raise
    except CirError as error:
        raise CheckpointError(f"{where}: {shown(error, 1000)}") from error
    restore_weights(model, content["weights"], where)
    try:
        check_tokenizer(content["tokenizer"].encode())
        tokenizer = Tokenizer.from_str(content["tokenizer"])
    except Exception as error:  # tokenizers raises bare Exception.
        raise CheckpointError(f"{where}: its tokenizer cannot be read ({shown(error, 500)})") from error
    return TrainedModel(model, tokenizer, content["image"], content["text"], content["provenance"])


def build_fitting(config: dict[str, Any], weights: Mapping[str, Any], where: str) -> RetrievalModel:
    """Builds a model whose weights are at hand; a configuration that asks for others takes no memory.

    Raises:
        CheckpointError: the configuration is none, or does not fit the weights.
    """
    check_layers(config, len(weights), where)
    try:
        with torch.device("meta"):  # shapes without memory
            shapes = build_model(config).state_dict()
        check_weights(shapes, weights, where)
        return build_model(config)
    except UsageError as error:
        raise CheckpointError(f"{where}: {error}") from error


def check_layers(config: Mapping[str, Any], weights: int, where: str) -> None:
    """Refuse a configuration whose layers cannot all have weights, before they are built.

    Raises:
        CheckpointError: see above.
    """
    if layers_of(config) > weights:
        raise CheckpointError(f"{where}: its configuration has more layers than it has weights")


def check_weights(expected: Mapping[str, Tensor], weights: Mapping[str, Any], where: str) -> None:
    """Compares weights with those that a model has.

    Raises:
        CheckpointError: one is missing, unknown, of another shape, or of another kind of numbers.
    """
    for name, tensor in expected.items():
        found = weights.get(name)
        if not isinstance(found, Tensor):
            raise CheckpointError(f"{where}: weight {name} is missing; expected shape {tuple(tensor.shape)}")
        if found.shape != tensor.shape:
            raise CheckpointError(
                f"{where}: weight {name} has shape {tuple(found.shape)}; expected {tuple(tensor.shape)}"
            )
        if found.is_floating_point() != tensor.is_floating_point():  # a complex one would lose a half
            raise CheckpointError(
                f"{where}: weight {name} is of type {found.dtype}; expected one like {tensor.dtype}"
            )
    unknown = sorted(map(str, set(weights) - set(expected)))
    if unknown:
        raise CheckpointError(f"{where}: weight {unknown[0][:100]} does not belong to its system")


def restore_weights(model: RetrievalModel, weights: Mapping[str, Any], where: str) -> None:
    """Loads every weight into a model, which goes into evaluation mode.

    Raises:
        CheckpointError: a weight is missing, unknown, of another shape, or not finite.
    """
    check_weights(model.state_dict(), weights, where)
    for name, found in weights.items():
        if found.is_floating_point() and not torch.isfinite(found).all():
            raise CheckpointError(f"{where}: weight {name} holds NaN or infinity")
    model.load_state_dict(dict(weights))
    model.float().eval()
