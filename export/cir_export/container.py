"""Reads what `torch.save` wrote without executing any of it, and writes such files whole or not at all."""

from __future__ import annotations

import argparse
import io
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir_infer.errors import CheckpointError, shown
from cir_infer.foreign import check_pickle, check_sums, checked_members, no_file, opened_archive
from cir_infer.processes.outputs import replacing

__all__ = ["check_container", "read_container", "write_container"]

_MOST_PICKLED = 64 << 20
"""Bytes of a pickle in an archive: names, shapes and plain values, never the tensors."""


def read_container(path: str | os.PathLike[str]) -> Any:
    """The content of a checkpoint, on the CPU: tensors, plain values and `argparse.Namespace`.

    Raises:
        CheckpointError: no such file, not a checkpoint, cut short, or holding anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} {no_file(path)}; expected a checkpoint")
    try:
        # The public repositories keep their options as a Namespace, which only holds values.
        check_container(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on pickle protocols; what matters is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_tensors(content)
        return content
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError, KeyError and more
        raise CheckpointError(f"{path} {_reason(error)}") from error


def write_container(path: Path, content: Any) -> None:
    """As `torch.save`, see `replacing`.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # PyTorch finds that fewer bytes were written; why was said before, by the file.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def check_container(path: Path) -> None:
    """Refuse a file whose reading would take more than a small multiple of its size.

    Raises:
        ValueError: its members are compressed, stand there twice, overlap or are damaged; or its pickle is
            hostile.
        OSError: it cannot be read; a damaged zip raises others, too.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\3\4"
    if not zipped:
        with path.open("rb") as file:
            # A number, a version, the system, the content, the names of what follows.
            check_pickle(file, pickles=5)
        return
    with opened_archive(path) as archive:
        members = checked_members(archive, path.stat().st_size)
        check_sums(archive, members)  # PyTorch takes a damaged weight as it is
        for name, info in members.items():
            if name.endswith(".pkl"):
                if info.file_size > _MOST_PICKLED:
                    raise ValueError(f"its {name} has {info.file_size:,} bytes")
                check_pickle(io.BytesIO(archive.read(info)))


def check_tensors(content: Any) -> None:
    """Refuse tensors that claim more than is stored of them: views of one number as a matrix of millions.

    Raises:
        ValueError: a tensor is such a view, has no values at all, or is of another layout.
    """
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError("it holds a tensor that is not plainly stored")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"it holds a tensor of shape {tuple(value.shape)} and not so many values")
        elif isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += value
        elif isinstance(value, argparse.Namespace):
            waiting += vars(value).values()


def _reason(error: Exception) -> str:
    """One line in place of PyTorch's page, which recommends to switch the protection off."""
    if isinstance(error, ValueError) and type(error) is ValueError:
        return f"was not loaded: {shown(error)}; expected a file that torch.save wrote"
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"holds more than tensors and plain values ({named[1][:100]}) and was not loaded"
    return "is not a checkpoint, or is damaged or cut short; expected a file that torch.save wrote"
