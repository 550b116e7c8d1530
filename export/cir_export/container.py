"""Reads what `torch.save` wrote without executing any of it."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from cir_infer.errors import CheckpointError

__all__ = ["read_container"]


def read_container(path: str | os.PathLike[str]) -> Any:
    """The content of a checkpoint, on the CPU: tensors, plain values and `argparse.Namespace`.

    Raises:
        CheckpointError: no such file, not a checkpoint, cut short, or holding anything else.
    """
    path = Path(path)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise CheckpointError(f"{path} {found}; expected a checkpoint")
    try:
        # The public repositories keep their options as a Namespace, which only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on pickle protocols; what matters is an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, UnpicklingError, EOFError, KeyError and more
        raise CheckpointError(f"{path} {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """One line in place of PyTorch's page, which recommends to switch the protection off."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"holds more than tensors and plain values ({named[1]}) and was not loaded"
    return "is not a checkpoint, or is damaged or cut short; expected a file that torch.save wrote"
