"""Reads the weights of a TorchScript archive, as OpenAI publishes CLIP, without running its program.

Such an archive is a zip of stored files: code/ (the program, never looked at), data.pkl (a pickle of nested
modules) and data/ (the tensors' bytes). `torch.jit.load` would compile the code; here an unpickler that can
build empty modules and tensors, and nothing else, reads the pickle.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cir_infer.errors import CheckpointError

__all__ = ["is_torchscript", "read_torchscript"]

_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Storage(NamedTuple):
    dtype: torch.dtype
    data: bytearray


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip with a program in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(_inner(name).startswith("code/") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of all modules by their dotted names.

    Raises:
        CheckpointError: the archive is damaged, or its pickle refers to anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = {_inner(info.filename): info for info in archive.infolist()}

            def read(name: str) -> bytes:
                # PyTorch stores what it maps into memory; a compressed member could be a bomb.
                if files[name].compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: {name} is compressed; no TorchScript archive has it so")
                return archive.read(files[name])

            root = _unpickler(path, read).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged zip or pickle raises almost anything
        raise CheckpointError(f"{path} cannot be read as a TorchScript archive ({error})") from error
    tensors: dict[str, Tensor] = {}
    _collect(root, "", tensors, set())
    return tensors


def _inner(name: str) -> str:
    """A file's name without the folder that all files of an archive lie in."""
    return name.partition("/")[2]


def _unpickler(path: Path, read: Any) -> pickle.Unpickler:
    class Module:
        """Takes the place of every class of the program; made anew for each file."""

    class TensorUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "__torch__" or module.startswith("__torch__."):
                return Module
            if module == "torch" and name in _STORAGES:
                return _STORAGES[name]
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return _tensor
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
                return _first
            raise CheckpointError(
                f"{path} refers to {module}.{name}; expected modules and tensors alone. "
                "Nothing of it was executed"
            )

        def persistent_load(self, pid: Any) -> _Storage:
            _, dtype, key, _, count = pid
            data = bytearray(read(f"data/{key}"))
            if len(data) != count * dtype.itemsize:
                raise CheckpointError(f"{path}: tensor data {key} has {len(data)} bytes; cut short?")
            return _Storage(dtype, data)

    return TensorUnpickler(io.BytesIO(read("data.pkl")))


def _tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if not storage.data:
        return torch.empty(size, dtype=storage.dtype)
    flat = torch.frombuffer(storage.data, dtype=storage.dtype)
    return flat.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


def _collect(value: Any, name: str, tensors: dict[str, Tensor], seen: set[int]) -> None:
    """Adds the tensors of a module and of the modules below it."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return
    if id(value) in seen or type(value).__name__ != "Module":
        return
    seen.add(id(value))
    for key, inner in vars(value).items():
        _collect(inner, f"{name}.{key}" if name else str(key), tensors, seen)
