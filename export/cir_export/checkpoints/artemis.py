"""Checkpoints of naver/artemis: ARTEMIS, its ablation and its TIRG, on pixels or on CIRR's features.

The container is `{"args": Namespace, "epoch", "best_score", "model": weights, "optimizer"}`. The
architecture is read from the weights; which of the versions that share one architecture it is stands
in `args.model_version`. The vocabulary is a file of its own, written before training, and must be
that very file: rebuilt from captions it may give words other ids.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cir_export.checkpoints.domains import domain_of
from cir_export.checkpoints.vocabulary import load_vocabulary
from cir_export.model_file import TrainedModel, restore_weights
from cir_export.models import build_model
from cir_export.models.encoders.resnet import resnet_name
from cir_export.preprocessing import feature_input, padded_crop, word_text
from cir_export.tokenization import SPECIALS, build_tokenizer
from cir_infer.errors import CheckpointError, CirError, shown

__all__ = ["is_artemis", "load_artemis"]

SYSTEMS = {
    "ARTEMIS": "artemis",
    "IS-only": "is-only",
    "EM-only": "em-only",
    "late-fusion": "late-fusion",
    "cross-modal": "text-only",
    "visual-search": "image-only",
    "TIRG": "tirg",
}
"""Systems by `args.model_version`."""

_RENAMED = {
    "txt_enc.embed.": "text_encoder.embed.",
    "txt_enc.sent_enc.0.": "text_encoder.rnn.layer.",
    "txt_enc.sent_enc.2.": "text_encoder.project.",
    "txt_enc.sent_enc.": "text_encoder.rnn.layer.",
    "img_enc.cnn.": "image_encoder.trunk.",
    "img_enc.fc.": "image_encoder.project.",
    "img_enc.linear.": "image_encoder.project.",
    "Transform_m.0.": "transform.",
    "Attention_EM.attention.0.": "attention_em.hidden.",
    "Attention_EM.attention.2.": "attention_em.out.",
    "Attention_IS.attention.0.": "attention_is.hidden.",
    "Attention_IS.attention.2.": "attention_is.out.",
    "gated_feature_composer.1.": "gate.0.",
    "gated_feature_composer.3.": "gate.2.",
    "res_info_composer.1.": "residual.0.",
    "res_info_composer.3.": "residual.2.",
    "res_info_composer.5.": "residual.4.",
}
"""Our prefixes of weight names by the authors'; the first that fits holds."""


def is_artemis(content: Any) -> bool:
    """Whether this is the container of naver/artemis."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("args"), argparse.Namespace)
        and isinstance(content.get("model"), Mapping)
        and any(str(name).startswith("txt_enc.") for name in content["model"])
    )


def load_artemis(
    content: Mapping[str, Any], where: str, vocabulary: str | os.PathLike[str] | None
) -> TrainedModel:
    """Builds the model of a checkpoint.

    Args:
        content: the container, see `is_artemis`.
        where: its path, for messages.
        vocabulary: the file `<data>_vocab.pkl` that belongs to it.

    Raises:
        CheckpointError: a part is missing or of another shape, the version is unknown, the vocabulary is
            missing or not this checkpoint's.
    """
    options, weights = vars(content["args"]), content["model"]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise CheckpointError(f"{where}: 'model' is not a table of tensors by name")
    version = options.get("model_version")
    if version not in SYSTEMS:
        raise CheckpointError(
            f"{where}: model_version {shown(version)} is not known; expected one of {', '.join(SYSTEMS)}"
        )
    config: dict[str, Any] = {"system": SYSTEMS[version], **_encoders(weights, where)}
    if version == "TIRG":
        config["score"] = "dot"  # l2(q) . t, and features give rows that are not of unit length
    try:
        model = build_model(config)
    except CirError as error:
        raise CheckpointError(f"{where}: {error}") from error
    restore_weights(model, _renamed(weights), where)
    words = _vocabulary(vocabulary, config["text"]["vocabulary_size"], where)
    return TrainedModel(
        model,
        build_tokenizer(words),
        _image_input(config["image"], options, where),
        word_text(),
        _provenance(content, options, config["text"]["encoder"]),
    )


def _encoders(weights: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The encoders' configuration, from names and shapes."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights or weights[name].ndim != 2:
            raise CheckpointError(f"{where}: weight {name} is missing or not a matrix")
        return tuple(weights[name].shape)

    if "img_enc.linear.weight" in weights:
        embedding_dim, features = shape("img_enc.linear.weight")
        image: dict[str, Any] = {"features": features, "normalize": False}
    else:
        embedding_dim, _ = shape("img_enc.fc.weight")
        prefix = "img_enc.cnn."
        trunk = resnet_name(
            {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        )
        if trunk is None:
            raise CheckpointError(f"{where}: the image trunk under {prefix} is not a ResNet that is known")
        image = {"trunk": trunk, "pooling": "gem", "size": 224}
    vocabulary_size, word_dim = shape("txt_enc.embed.weight")
    text: dict[str, Any] = {"vocabulary_size": vocabulary_size, "word_dim": word_dim}
    if "txt_enc.sent_enc.0.weight_hh_l0" in weights:
        text |= {"encoder": "lstm", "hidden": shape("txt_enc.sent_enc.0.weight_hh_l0")[1]}
    else:
        text |= {"encoder": "bigru"}
    return {"embedding_dim": embedding_dim, "image": image, "text": text}


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, value in weights.items():
        old = next((prefix for prefix in _RENAMED if name.startswith(prefix)), None)
        renamed[name if old is None else _RENAMED[old] + name.removeprefix(old)] = value
    # The authors multiply scores by exp(temperature) in training, too.
    if "temperature" in renamed:
        renamed["logit_scale"] = renamed.pop("temperature").reshape(())
    if "a" in renamed:
        renamed["branch_weights"] = renamed.pop("a")
    return renamed


def _vocabulary(path: str | os.PathLike[str] | None, size: int, where: str) -> dict[str, int]:
    if path is None:
        raise CheckpointError(
            f"{where} does not hold its vocabulary; give the file <data>_vocab.pkl of its training (--vocab)"
        )
    words = load_vocabulary(path)
    if len(words) != size:
        raise CheckpointError(
            f"vocabulary {path} has {len(words)} tokens and {where} has word vectors for {size}; give the "
            "file that this checkpoint was trained with"
        )
    misplaced = [word for index, word in enumerate(SPECIALS) if words.get(word) != index]
    if misplaced:
        raise CheckpointError(
            f"vocabulary {path}: {misplaced[0]} has id {words.get(misplaced[0])}; expected the special "
            f"tokens {' '.join(SPECIALS)} first"
        )
    return words


def _image_input(image: Mapping[str, Any], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "features" in image:
        return feature_input(image["features"])
    crop = options.get("crop_size", 224)
    # The authors' pooling reads the trunk's map as 7 x 7 whatever it is.
    if type(crop) is not int or (crop + 31) // 32 != 7:
        raise CheckpointError(f"{where}: crop_size {shown(crop)} does not give a map of 7 x 7; expected 224")
    return padded_crop(crop)


def _provenance(content: Mapping[str, Any], options: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    found = {"format": "naver/artemis", "epoch": content.get("epoch")}
    found |= {key: options.get(key) for key in ("data_name", "model_version", "exp_name")}
    found["domain"] = domain_of(options.get("data_name"))
    # Their LSTM runs over the padding of its batch; their GRU is given the lengths.
    found["authors_read_padding"] = True if encoder == "lstm" else None
    return {key: value for key, value in found.items() if isinstance(value, str | int | float)}
