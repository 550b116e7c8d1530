"""Reads a file of a checkpoint, whatever it is: PyTorch, TorchScript, safetensors, flax or JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cir_export.checkpoints.flax import FLAX, is_flax, read_flax
from cir_export.checkpoints.torchscript import is_torchscript, read_torchscript
from cir_export.container import read_container
from cir_infer.errors import CheckpointError
from cir_infer.foreign import read_json

__all__ = ["TORCHSCRIPT", "check_header", "read_checkpoint_file"]

TORCHSCRIPT = "torchscript"
"""The one key of what is returned for a TorchScript archive; its value are the weights by name."""

_MAX_JSON = 1 << 20
_MAX_HEADER = 16 << 20
"""Bytes. What lists its tensors takes some twenty times as much memory."""


def read_checkpoint_file(path: str | os.PathLike[str]) -> Any:
    """The content of one file, on the CPU. Nothing in it is executed.

    Returns:
        What `torch.save` was given; `{"torchscript": weights}`; `{"flax": weights}`; the weights by name of
        a safetensors file; the table of a JSON file.

    Raises:
        CheckpointError: no such file, none of these, cut short, or holding more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        return read_container(path)  # which says what is wrong
    with path.open("rb") as file:
        start = file.read(16)
    if start.lstrip()[:1] == b"{":
        return _json(path)
    if start[8:9] == b"{":
        return _safetensors(path)
    if is_flax(start):
        return {FLAX: read_flax(path)}
    if is_torchscript(path):
        return {TORCHSCRIPT: read_torchscript(path)}
    return read_container(path)


def _json(path: Path) -> Any:
    if path.stat().st_size > _MAX_JSON:
        raise CheckpointError(f"{path} has more than {_MAX_JSON >> 20} MB; that is no table of settings")
    try:
        return read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from error


def check_header(path: Path) -> None:
    """Refuse a safetensors file whose table of contents takes gigabytes.

    Raises:
        CheckpointError: it is longer than that of any model.
    """
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > _MAX_HEADER:
        raise CheckpointError(
            f"{path} has a table of contents of {header:,} bytes; at most {_MAX_HEADER:,} are read "
            "(a model's has some thousands); download it again"
        )


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path)
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error})") from error
