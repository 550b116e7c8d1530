"""What reads the texts of a training where it comes with the weights: a CLIP's tokenizer, and its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from cir_export.checkpoints.folders import load_folder
from cir_export.checkpoints.folders.files import json_of
from cir_export.clip_tokenization import clip_text
from cir_export.container import read_container
from cir_export.model_file import is_model_file, model_from_content
from cir_export.models.encoders.clip import Clip
from cir_export.training.configuration import TrainingConfig
from cir_infer.errors import TrainingError, shown

__all__ = ["Reading", "reading_of"]


class Reading(NamedTuple):
    """How texts become tokens.

    Attributes:
        tokenizer: with cleaning and special tokens inside.
        text: as in a bundle's manifest.
        clip: the sizes of the CLIP that it belongs to.
    """

    tokenizer: Tokenizer
    text: dict[str, Any]
    clip: dict[str, Any]


def reading_of(config: TrainingConfig, initial: Sequence[Path]) -> tuple[TrainingConfig, Reading | None]:
    """The last CLIP's among what a training starts from, and the configuration with its sizes.

    Args:
        config: of any system; the others build their words from the training texts.
        initial: files and folders to start from.

    Returns:
        The configuration with the CLIP's sizes in `model.clip`; None where texts are read as words.

    Raises:
        TrainingError: `model.clip` says another size.
        CheckpointError: a folder or file is damaged.
    """
    if not isinstance(config.model.get("clip"), Mapping):
        return config, None
    found: tuple[Path, Reading] | None = None
    for path in initial:
        reading = _of_folder(path) if path.is_dir() else _of_file(path) if path.is_file() else None
        found = found if reading is None else (path, reading)
    if found is None:
        return config, None
    path, reading = found
    stated = config.model["clip"]
    for key, value in stated.items():
        theirs = reading.clip.get(key)
        if key != "vocabulary_size" and theirs is not None and _plain(theirs) != _plain(value):
            raise TrainingError(
                f"model.clip.{key}: {shown(value)}, but {path} has {shown(_plain(theirs))}; leave the table "
                "[model.clip] empty to take its sizes"
            )
    return replace(config, model={**config.model, "clip": {**stated, **reading.clip}}), reading


def _of_folder(path: Path) -> Reading | None:
    if (json_of(path, "config.json") or {}).get("model_type") == "bert":
        return None
    trained = load_folder(path)
    if not isinstance(getattr(trained.model, "pair", None), Clip):
        return None  # `start_from` says what it is
    sizes = {key: value for key, value in trained.model.config["pair"].items() if key != "family"}
    return Reading(trained.tokenizer, {**trained.text, "captions": clip_text()["captions"]}, sizes)


def _of_file(path: Path) -> Reading | None:
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # a model file is a zip; other weights say nothing of texts
            return None
    content = read_container(path)
    if not is_model_file(content) or "clip" not in content.get("config", {}):
        return None
    trained = model_from_content(content, str(path))
    return Reading(trained.tokenizer, trained.text, dict(trained.model.config["clip"]))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
