"""What reads texts and pictures of a training where it comes with the weights, and the encoders' sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from cir_export.checkpoints.folders import load_folder
from cir_export.checkpoints.folders.files import json_of
from cir_export.checkpoints.pic2word import prompted
from cir_export.clip_tokenization import clip_text
from cir_export.container import read_container
from cir_export.model_file import TrainedModel, is_model_file, model_from_content
from cir_export.models import MODELS
from cir_export.models.encoders.clip import Clip
from cir_export.models.encoders.pair import Pair
from cir_export.training.configuration import TrainingConfig
from cir_infer.errors import TrainingError, shown
from cir_infer.foreign import opened_file

__all__ = ["Reading", "reading_of"]


class Reading(NamedTuple):
    """How texts become tokens, and pictures what the encoders were trained on.

    Attributes:
        tokenizer: with cleaning and special tokens inside.
        text: as in a bundle's manifest.
        image: likewise.
    """

    tokenizer: Tokenizer
    text: dict[str, Any]
    image: dict[str, Any]


def reading_of(config: TrainingConfig, initial: Sequence[Path]) -> tuple[TrainingConfig, Reading | None]:
    """That of the last encoders among what a training starts from, and the configuration with their sizes.

    Args:
        config: of any system; those without a table `clip` or `pair` build their words from the training
            texts.
        initial: files and folders to start from.

    Returns:
        The configuration with the sizes in `model.clip` or `model.pair`; None where texts are read as words.

    Raises:
        TrainingError: the table says another size, or no encoders are given for a head over a pair.
        CheckpointError: a folder or file is damaged.
    """
    name = next((name for name in ("pair", "clip") if isinstance(config.model.get(name), Mapping)), None)
    if name is None:
        return config, None
    found: tuple[Path, TrainedModel] | None = None
    for path in initial:
        trained = None if not path.exists() else (_of_folder if path.is_dir() else _of_file)(path, name)
        found = found if trained is None else (path, trained)
    if found is None and name == "pair":
        raise TrainingError(
            f"system {shown(config.model.get('system'))} is a head over encoders that are at hand; give the "
            "folder of a CLIP or a SigLIP with --initial, and leave the table [model.pair] empty"
        )
    if found is None:
        return config, None
    path, trained = found
    sizes = dict(trained.model.config["pair" if "pair" in trained.model.config else "clip"])
    if name == "clip":
        sizes.pop("family", None)
    stated = config.model[name]
    for key, value in stated.items():
        theirs = sizes.get(key)
        if key != "vocabulary_size" and theirs is not None and _plain(theirs) != _plain(value):
            raise TrainingError(
                f"model.{name}.{key}: {shown(value)}, but {path} has {shown(_plain(theirs))}; leave the "
                f"table [model.{name}] empty to take its sizes"
            )
    model = {**config.model, name: {**stated, **sizes}}
    tokenizer, place = _behind_prompt(trained, str(config.model.get("system")), path)
    if place is not None:
        model["place"] = place
    return replace(config, model=model), Reading(tokenizer, trained.text, trained.image)


def _behind_prompt(trained: TrainedModel, system: str, path: Path) -> tuple[Tokenizer, int | None]:
    """The tokenizer with the system's prompt, and where the picture's word stands in it."""
    prompt = MODELS[system].prompt if system in MODELS else None
    if trained.model.prompt is None:
        return (trained.tokenizer, None) if prompt is None else prompted(trained.tokenizer, *prompt)
    if prompt is None:
        raise TrainingError(
            f"{path} reads every text behind a prompt, which system {shown(system)} does not; start from the "
            "folder of its encoders"
        )
    return trained.tokenizer, trained.model.config["place"]


def _of_folder(path: Path, name: str) -> TrainedModel | None:
    if (json_of(path, "config.json") or {}).get("model_type") == "bert":
        return None
    trained = load_folder(path)
    if not isinstance(getattr(trained.model, "pair", None), Clip if name == "clip" else Pair):
        return None  # `start_from` says what it is
    return replace(trained, text={**trained.text, "captions": clip_text()["captions"]})


def _of_file(path: Path, name: str) -> TrainedModel | None:
    with opened_file(path) as file:
        if file.read(2) != b"PK":  # a model file is a zip; other weights say nothing of texts
            return None
    content = read_container(path)
    if not is_model_file(content) or name not in content.get("config", {}):
        return None
    return model_from_content(content, str(path))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
