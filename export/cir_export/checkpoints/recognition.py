"""Tells the containers apart by what is in them, never by a flag or a file name."""

from __future__ import annotations

import os

from cir_export.checkpoints.artemis import is_artemis, load_artemis
from cir_export.container import read_container
from cir_export.model_file import TrainedModel, is_model_file, model_from_content
from cir_infer.errors import CheckpointError

__all__ = ["load_trained"]


def load_trained(
    path: str | os.PathLike[str], vocabulary: str | os.PathLike[str] | None = None
) -> TrainedModel:
    """Loads a trained model: `cir-train`'s model file or a public repository's checkpoint.

    Args:
        path: the file.
        vocabulary: the vocabulary file of checkpoints that do not hold it.

    Raises:
        CheckpointError: not a checkpoint, of an unknown layout, or its parts do not fit.
    """
    content, where = read_container(path), str(path)
    if is_model_file(content):
        if vocabulary is not None:
            raise CheckpointError(f"{where} holds its own tokenizer; leave the vocabulary file out")
        return model_from_content(content, where)
    if is_artemis(content):
        return load_artemis(content, where, vocabulary)
    raise CheckpointError(
        f"{where} is a checkpoint of an unknown layout ({_shown(content)}); expected a model file of "
        "cir-train or a checkpoint of naver/artemis"
    )


def _shown(content: object) -> str:
    if isinstance(content, dict):
        keys = [str(key) for key in list(content)[:6]]
        return "top-level keys " + ", ".join(keys) if keys else "an empty table"
    return f"a {type(content).__name__}"
