"""Checkpoints of google/tirg: TIRG on vectors and on the last map, concatenation, image only, text only.

The container is `{"it", "opt": Namespace, "model_state_dict"}`, zipped or in PyTorch's old format. It does
not hold its vocabulary, which the authors rebuild from the training texts at every start: in alphabetic
order since April 2021, in the order of first occurrence before. Both have as many words, so a checkpoint
loads with either and answers nonsense with the wrong one; here the vocabulary is never guessed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cir_export.checkpoints.domains import domain_of
from cir_export.checkpoints.vocabulary import load_vocabulary
from cir_export.model_file import TrainedModel, restore_weights
from cir_export.models import build_model
from cir_export.models.encoders.resnet import resnet_name
from cir_export.simple_tokenization import UNKNOWN, build_simple_tokenizer, simple_text, words_of_texts
from cir_infer.errors import CheckpointError, CirError, shown
from cir_infer.foreign import lines_in

__all__ = ["is_tirg", "load_tirg", "vocabulary_of_texts"]

SYSTEMS = {
    "tirg": "tirg",
    "tirg_lastconv": "tirg-last-convolution",
    "concat": "concatenation",
    "imgonly": "tirg-image-only",
    "textonly": "tirg-text-only",
}
"""Systems by `opt.model`."""

_TELLING = {
    "tirg": "gated_feature_composer.1.weight",
    "tirg_lastconv": "mod2d.0.weight",
    "concat": "composer.m.0.weight",
}
"""A weight that only this model has."""

_RENAMED = {
    "img_model.fc.0.": "image_encoder.project.",
    "img_model.": "image_encoder.trunk.",
    "text_model.embedding_layer.": "text_encoder.embed.",
    "text_model.lstm.": "text_encoder.rnn.layer.",
    "text_model.fc_output.1.": "text_encoder.project.",
    "gated_feature_composer.1.": "gate.0.",
    "gated_feature_composer.3.": "gate.2.",
    "res_info_composer.1.": "residual.0.",
    "res_info_composer.3.": "residual.2.",
    "res_info_composer.5.": "residual.4.",
    "mod2d_gate.": "gate.",
    "mod2d.": "residual.",
    "composer.m.": "mlp.",
}
"""Our prefixes of weight names by the authors'; the first that fits holds."""


def is_tirg(content: Any) -> bool:
    """Whether this is the container of google/tirg."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("model_state_dict"), Mapping)
        and "img_model.fc.0.weight" in content["model_state_dict"]
        and "text_model.embedding_layer.weight" in content["model_state_dict"]
    )


def load_tirg(
    content: Mapping[str, Any],
    where: str,
    vocabulary: str | os.PathLike[str] | None,
    image_size: tuple[int, int] | None = None,
) -> TrainedModel:
    """Builds the model of a checkpoint.

    Args:
        content: the container, see `is_tirg`.
        where: its path, for messages.
        vocabulary: JSON or a pickled `SimpleVocab`, see `load_vocabulary`; or the training texts, one a
            line, which do where both orders are the same.
        image_size: height and width of the images of a model of CSS, which sees them as they are.

    Raises:
        CheckpointError: a part is missing or of another shape, the model is unknown, the vocabulary is
            missing, ambiguous or not this checkpoint's.
    """
    weights = content["model_state_dict"]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise CheckpointError(f"{where}: 'model_state_dict' is not a table of tensors by name")
    options = vars(content["opt"]) if isinstance(content.get("opt"), argparse.Namespace) else {}
    name = _model_name(weights, options, where)
    config = {"system": SYSTEMS[name], **_encoders(weights, name, where)}
    image = _image_input(options, image_size, where)
    config["image"]["size"] = image["height"]
    try:
        model = build_model(config)
    except CirError as error:
        raise CheckpointError(f"{where}: {error}") from error
    # The scale of the training's normalisation layer has no part in a cosine.
    restore_weights(model, {"logit_scale": model.logit_scale.detach(), **_renamed(weights)}, where)
    words = _vocabulary(vocabulary, config["text"]["vocabulary_size"], where)
    found = {"format": "google/tirg", "iteration": content.get("it")}
    found |= {key: options.get(key) for key in ("dataset", "model", "loss")}
    found["domain"] = domain_of(options.get("dataset"))
    provenance = {key: value for key, value in found.items() if isinstance(value, str | int | float)}
    return TrainedModel(model, build_simple_tokenizer(words), image, simple_text(), provenance)


def vocabulary_of_texts(texts: Iterable[str], order: str) -> dict[str, int]:
    """Token ids by word, as google/tirg builds them from its training texts.

    Args:
        texts: in the order in which the data set gives them.
        order: "sorted", as since April 2021, or "first-occurrence", as before.
    """
    words = words_of_texts(texts)
    return {
        word: index for index, word in enumerate([UNKNOWN, *(sorted(words) if order == "sorted" else words)])
    }


def _model_name(weights: Mapping[str, Tensor], options: Mapping[str, Any], where: str) -> str:
    """The authors' name of the model: what the weights show, or what the options say where both fit."""
    known = next((name for name, weight in _TELLING.items() if weight in weights), None)
    said = options.get("model")
    if known is None and said in ("imgonly", "textonly"):
        return str(said)
    if known is None:
        raise CheckpointError(
            f"{where}: model {shown(said)} is not known and its weights are encoders alone; expected "
            f"opt.model to be one of {', '.join(SYSTEMS)}"
        )
    if said is not None and said != known:
        raise CheckpointError(
            f"{where}: opt.model is {shown(said)} but its weights are those of {shown(known)}"
        )
    return known


def _encoders(weights: Mapping[str, Tensor], model: str, where: str) -> dict[str, Any]:
    """The encoders' configuration, from names and shapes."""

    def shape(weight: str) -> tuple[int, ...]:
        if weight not in weights or weights[weight].ndim != 2:
            raise CheckpointError(f"{where}: weight {weight} is missing or not a matrix")
        return tuple(weights[weight].shape)

    prefix = "img_model."
    trunk = resnet_name(
        {
            name.removeprefix(prefix): weight
            for name, weight in weights.items()
            if name.startswith(prefix) and not name.startswith(f"{prefix}fc.")
        }
    )
    if trunk is None:
        raise CheckpointError(f"{where}: the image trunk under {prefix} is not a ResNet that is known")
    vocabulary_size, word_dim = shape("text_model.embedding_layer.weight")
    # The last map is pooled raw into a unit row; the other models' rows serve as references, so stay raw.
    raw = model in ("tirg", "concat")
    return {
        "embedding_dim": shape("img_model.fc.0.weight")[0],
        "image": {"trunk": trunk, "pooling": "mean", "normalize": not raw},
        "text": {
            "vocabulary_size": vocabulary_size,
            "encoder": "lstm-last",
            "word_dim": word_dim,
            "hidden": shape("text_model.lstm.weight_hh_l0")[1],
            "normalize": False,
        },
    }


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        old = next((prefix for prefix in _RENAMED if name.startswith(prefix)), None)
        if old is not None:
            renamed[_RENAMED[old] + name.removeprefix(old)] = value
        elif name == "a":
            renamed["branch_weights"] = value.reshape(-1)[:2]  # the authors' other two are not used
        elif name != "normalization_layer.norm_s":
            renamed[name] = value
    return renamed


def _image_input(options: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> dict[str, Any]:
    pixels: dict[str, Any] = {"kind": "pixels", "height": 224, "width": 224, "exif_orientation": True}
    if options.get("dataset") == "css3d":
        if size is None:
            raise CheckpointError(
                f"{where} was trained on CSS, whose images go in as they are; say their size (--image-size)"
            )
        return pixels | {"height": size[0], "width": size[1], "steps": [{"op": "to_rgb"}]}
    if size not in (None, (224, 224)):
        raise CheckpointError(f"{where} sees images of 224 x 224; leave the image size out")
    resize = {"op": "resize", "size": 224, "interpolation": "bilinear"}
    return pixels | {"steps": [{"op": "to_rgb"}, resize, {"op": "center_crop", "size": 224}]}


def _vocabulary(path: str | os.PathLike[str] | None, size: int, where: str) -> dict[str, int]:
    if path is None:
        raise CheckpointError(
            f"{where} does not hold its vocabulary of {size} words, and rebuilt from the training texts its "
            "order depends on the version of google/tirg that trained it; give the table word2id of that "
            "training as JSON (--vocab)"
        )
    texts = _training_texts(Path(path))
    words = load_vocabulary(path) if texts is None else _rebuilt(texts, size, path, where)
    if len(words) != size:
        raise CheckpointError(
            f"vocabulary {path} has {len(words)} words and {where} has word vectors for {size}; give the one "
            "that this checkpoint was trained with"
        )
    if words.get(UNKNOWN) != 0:
        raise CheckpointError(f"vocabulary {path}: {UNKNOWN} has id {words.get(UNKNOWN)}; expected 0")
    return words


def _training_texts(path: Path) -> list[str] | None:
    """The lines of a text file; None for anything else, JSON and pickles among it."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(4096)
    if start.lstrip()[:1] in (b"{", b"[") or b"\x00" in start or start[:1] == b"\x80":
        return None
    try:
        return lines_in(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        return None


def _rebuilt(texts: list[str], size: int, path: str | os.PathLike[str], where: str) -> dict[str, int]:
    ordered = vocabulary_of_texts(texts, "sorted")
    if len(ordered) != size:
        return ordered
    if ordered != vocabulary_of_texts(texts, "first-occurrence"):
        raise CheckpointError(
            f"the order of the vocabulary of {where} is ambiguous: the words of {path} fit in alphabetic "
            "order (google/tirg since April 2021) and in order of occurrence (before), and only one of the "
            "two is right; give the table word2id of its training as JSON instead"
        )
    return ordered
