"""Reads the weights of a TorchScript archive, as OpenAI publishes CLIP, without running its program.

Such an archive is a zip of stored files: code/ (the program, never looked at), data.pkl (a pickle of nested
modules) and data/ (the tensors' bytes). `torch.jit.load` would compile the code; here an unpickler that can
build empty modules and tensors, and nothing else, reads the pickle.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cir_infer.errors import CheckpointError, shown
from cir_infer.foreign import check_pickle, checked_members, opened_archive

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


_LONGEST_NAME = 1000
"""Of a module; what lies deeper is no weight of any model."""

_MOST_PICKLED = 64 << 20
"""Bytes of data.pkl: names and shapes, never the tensors."""


class _Storage(NamedTuple):
    dtype: torch.dtype
    data: bytearray


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip with a program in it."""
    try:
        with opened_archive(path) as archive:
            return any(map(_is_code, archive.namelist()))
    except Exception:  # no archive, or a damaged one, as whoever reads it will say
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of all modules by their dotted names.

    Raises:
        CheckpointError: the archive is damaged, its pickle refers to anything but modules and tensors, or
            reading it would take more than it holds.
    """
    try:
        with opened_archive(path) as archive:
            members = checked_members(archive, path.stat().st_size, _is_code)
            files = {_inner(name): info for name, info in members.items()}
            pickled = files["data.pkl"]
            if pickled.file_size > _MOST_PICKLED:
                raise CheckpointError(
                    f"{path}: data.pkl has {pickled.file_size:,} bytes; that holds no weights"
                )
            check_pickle(io.BytesIO(archive.read(pickled)))
            root = _unpickler(path, lambda name: archive.read(files[name])).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged zip or pickle raises almost anything
        raise CheckpointError(f"{path} cannot be read as a TorchScript archive ({shown(error)})") from error
    return _collected(root)


def _is_code(name: str) -> bool:
    """Whether a file is part of the program, which is never looked at."""
    return _inner(name).startswith("code/")


def _inner(name: str) -> str:
    """A file's name without the folder that all files of an archive lie in."""
    return name.partition("/")[2]


def _unpickler(path: Path, read: Callable[[str], bytes]) -> pickle.Unpickler:
    storages: dict[str, _Storage] = {}

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
                f"{path} refers to {module[:80]}.{name[:80]}; expected modules and tensors alone. "
                "Nothing of it was executed"
            )

        def persistent_load(self, pid: Any) -> _Storage:
            _, dtype, key, _, count = pid
            # Tensors share their storage; each is read once, however often it is referred to.
            if key not in storages:
                storages[key] = _Storage(dtype, bytearray(read(f"data/{key}")))
            data = storages[key].data
            if len(data) != count * dtype.itemsize:
                raise CheckpointError(f"{path}: tensor data {shown(key)} has {len(data)} bytes; cut short?")
            return _Storage(dtype, data)

    return TensorUnpickler(io.BytesIO(read("data.pkl")))


def _tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if math.prod(size) * storage.dtype.itemsize > len(storage.data):
        raise CheckpointError(f"a tensor of shape {shown(size)} has {len(storage.data):,} bytes; cut short?")
    if not storage.data:
        return torch.empty(size, dtype=storage.dtype)
    flat = torch.frombuffer(storage.data, dtype=storage.dtype)
    return flat.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


def _collected(root: Any) -> dict[str, Tensor]:
    """The tensors of a module and of the modules below it, however deep."""
    tensors: dict[str, Tensor] = {}
    waiting: list[tuple[Any, str]] = [(root, "")]
    seen: set[int] = set()
    while waiting:
        value, name = waiting.pop()
        if isinstance(value, Tensor):
            tensors[name] = value
        elif type(value).__name__ == "Module" and id(value) not in seen and len(name) < _LONGEST_NAME:
            seen.add(id(value))
            inner = vars(value).items()
            waiting += [(part, f"{name}.{key}" if name else str(key)) for key, part in reversed(inner)]
    return tensors
