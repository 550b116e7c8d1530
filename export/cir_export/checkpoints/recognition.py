"""Tells the containers apart by what is in them, never by a flag or a file name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cir_export.checkpoints.artemis import is_artemis, load_artemis
from cir_export.checkpoints.blip2 import is_blip2, load_blip2_checkpoint
from cir_export.checkpoints.blip4cir import is_blip4cir, load_blip4cir
from cir_export.checkpoints.clip4cir import is_clip4cir, load_clip4cir
from cir_export.checkpoints.files import read_checkpoint_file
from cir_export.checkpoints.folders import load_folder
from cir_export.checkpoints.magiclens import is_magiclens, load_magiclens
from cir_export.checkpoints.pic2word import is_pic2word, load_pic2word
from cir_export.checkpoints.tirg import is_tirg, load_tirg
from cir_export.hub import is_hub_name
from cir_export.model_file import TrainedModel, is_model_file, model_from_content
from cir_export.presets import preset_in
from cir_infer.errors import CheckpointError, UsageError

__all__ = ["load_trained"]

_ALONE = (is_blip2, is_magiclens, is_tirg, is_model_file, is_artemis)
"""What tells the checkpoints that are one file."""

_OF_A_FOLDER = ("config.json", "open_clip_config.json", "adapter_config.json")
"""One of these lies in a folder of transformers, open_clip or peft."""


def load_trained(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    vocabulary: str | os.PathLike[str] | None = None,
    image_size: tuple[int, int] | None = None,
    round_clip_to_float16: bool = False,
    system: str | None = None,
) -> TrainedModel:
    """Loads a trained model: `cir-train`'s model file or a public repository's checkpoint.

    Args:
        paths: the file, the files that make one model together, in any order (CLIP4Cir), or a folder of
            transformers or open_clip, or its name on the Hugging Face Hub.
        vocabulary: the vocabulary file of checkpoints that do not hold it.
        image_size: height and width of the images of a checkpoint that does not say it (TIRG on CSS).
        round_clip_to_float16: see `load_clip4cir`.
        system: of a folder, see `load_folder`.

    Raises:
        CheckpointError: not a checkpoint, of an unknown layout, or its parts do not fit.
        UsageError: `system` is none of a folder's, or MODEL is no folder.
    """
    files = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    for path in files:
        _refuse_absent(path)
    if len(files) == 1 and _is_folder(files[0]):
        trained = load_folder(files[0], system)
        _refuse(
            str(files[0]), vocabulary is not None, "holds its own tokenizer; leave the vocabulary file out"
        )
        _refuse(str(files[0]), image_size is not None, "says its image size; leave --image-size out")
        _refuse(
            str(files[0]), round_clip_to_float16, "is no model of CLIP4Cir, whose weights could be rounded"
        )
        return trained
    if system is not None:
        raise UsageError(
            f"--system belongs to a folder of encoders; {files[0]} says itself which system it is"
        )
    folders = [path for path in files if _is_folder(path)]
    contents = [(read_checkpoint_file(path), str(path)) for path in files if path not in folders]
    words = [(content, where) for content, where in contents if is_pic2word(content)]
    if words:
        rest = [path for path in files if str(path) != words[0][1]]
        base = load_trained(rest, vocabulary, image_size, round_clip_to_float16) if rest else None
        return load_pic2word(*words[0], base)
    if folders:
        other = next((path for path in files if path != folders[0]), "it")
        raise CheckpointError(f"{folders[0]} is a model of its own; give {other} in a call of its own")
    if any(is_blip4cir(content) for content, _ in contents):
        _refuse(contents[0][1], image_size is not None, "says its image size; leave --image-size out")
        return load_blip4cir(contents, vocabulary)
    if any(is_clip4cir(content) for content, _ in contents):
        _refuse(contents[0][1], vocabulary is not None, "holds no vocabulary of its own; CLIP's is built in")
        _refuse(contents[0][1], image_size is not None, "says its image size; leave --image-size out")
        return load_clip4cir(contents, round_clip_to_float16)
    content, where = contents[0]
    if not any(known(content) for known in _ALONE):
        _refuse_unknown(content, where)
    _refuse(where, round_clip_to_float16, "holds no CLIP, whose weights could be rounded")
    if len(contents) > 1:
        raise CheckpointError(f"{where} is a model of its own; give {contents[1][1]} in a call of its own")
    if is_blip2(content):
        _refuse(where, image_size is not None, "says its image size; leave --image-size out")
        return load_blip2_checkpoint(content, where, vocabulary)
    if is_magiclens(content):
        _refuse(where, vocabulary is not None, "reads CLIP's tokens; leave the vocabulary file out")
        _refuse(where, image_size is not None, "says its image size; leave --image-size out")
        return load_magiclens(content, where)
    if is_tirg(content):
        return load_tirg(content, where, vocabulary, image_size)
    _refuse(where, image_size is not None, "says its image size; leave --image-size out")
    if is_model_file(content):
        _refuse(where, vocabulary is not None, "holds its own tokenizer; leave the vocabulary file out")
        return model_from_content(content, where)
    return load_artemis(content, where, vocabulary)


def _is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether it is one here, or one of the Hub."""
    return Path(path).is_dir() or is_hub_name(str(path))


def _refuse_absent(path: str | os.PathLike[str]) -> None:
    """What is not here, where it is known from where it comes."""
    preset = None if Path(path).exists() else preset_in(Path(path).name)
    if preset is not None and not is_hub_name(str(path)):
        raise CheckpointError(
            f"{path} does not exist; download it first, `hf download {preset.name} --local-dir {path}`, or "
            f"give its name, {preset.name}"
        )


def _refuse_unknown(content: object, where: str) -> None:
    folder = Path(where).parent
    if any((folder / name).is_file() for name in _OF_A_FOLDER):
        raise CheckpointError(
            f"{where} is one file of a model whose other files lie beside it; give their folder, {folder}"
        )
    raise CheckpointError(
        f"{where} is a checkpoint of an unknown layout ({_shown(content)}); expected a model file of "
        "cir-train, a checkpoint of naver/artemis, google/tirg, CLIP4Cir, Bi-BLIP4CIR, Pic2Word, SEARLE, "
        "LinCIR, MagicLens, BLIP-2, CoVR-2 or SPRC, or a folder of transformers or open_clip; weights of a "
        f"module of your own go with it, `cir-export package.module:Name --weights {where}` "
        "(docs/systems.md, Bring your own)"
    )


def _refuse(where: str, condition: bool, reason: str) -> None:
    if condition:
        raise CheckpointError(f"{where} {reason}")


def _shown(content: object) -> str:
    if isinstance(content, dict):
        keys = [str(key) for key in list(content)[:6]]
        return "top-level keys " + ", ".join(keys) if keys else "an empty table"
    return f"a {type(content).__name__}"
