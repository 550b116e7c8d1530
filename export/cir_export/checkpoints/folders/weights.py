"""The weights of a folder, read one at a time: one file or several, safetensors or a pickle of PyTorch.

A pickle goes through `read_container`, which builds tensors and plain values and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cir_export.checkpoints.files import check_header
from cir_export.checkpoints.folders.files import is_pointer, json_of, within
from cir_export.container import read_container
from cir_infer.errors import CheckpointError, shown
from cir_infer.foreign import has_file

__all__ = ["HUGGING_FACE", "OPEN_CLIP", "FolderWeights", "open_weights", "refuse_adapters"]

HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of the weights, the better ones first; in several parts each has an index beside, NAME.index.json."""

_ADAPTER = "adapter_config.json"
_OTHER = {
    "tf_model.h5": "TensorFlow's",
    "flax_model.msgpack": "Flax's",
    "rust_model.ot": "rust-bert's",
}


class FolderWeights:
    """Weights by name.

    Attributes:
        names: all of them.
        where: the file or the index, for messages.
    """

    def __init__(self, files: Mapping[str, Path], where: str) -> None:
        self._files = dict(files)
        self._opened: dict[Path, Any] = {}
        self.names = frozenset(files)
        self.where = where

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a weight, None where it is missing."""
        if name not in self.names:
            return None
        held = self._held(self._files[name])
        if isinstance(held, Mapping):
            return tuple(held[name].shape)
        return tuple(held.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A weight in float32.

        Raises:
            CheckpointError: it is missing, or no table of numbers.
        """
        if name not in self.names:
            raise CheckpointError(f"{self.where}: weight {name} is missing")
        held = self._held(self._files[name])
        value = held[name] if isinstance(held, Mapping) else held.get_tensor(name)
        if not value.is_floating_point():
            raise CheckpointError(f"{self.where}: weight {name} is of type {value.dtype}; expected floats")
        return value.to(torch.float32)  # type: ignore[no-any-return]

    def _held(self, path: Path) -> Any:
        if path not in self._opened:
            self._opened[path] = _open(path)
        return self._opened[path]


def open_weights(folder: Path, names: tuple[str, ...]) -> FolderWeights:
    """The weights of a folder.

    Args:
        folder: of the model.
        names: of the files that may hold them, the better ones first.

    Raises:
        CheckpointError: there are none, a part is missing, it holds adapters, or a file is none.
    """
    refuse_adapters(folder)
    for name in names:
        if has_file(folder / name, CheckpointError):
            return FolderWeights(dict.fromkeys(_names(folder / name), folder / name), str(folder / name))
        index = json_of(folder, f"{name}.index.json")
        if index is not None:
            return _sharded(folder, f"{name}.index.json", index)
    raise CheckpointError(_missing(folder, names))


def refuse_adapters(folder: Path) -> None:
    """Adapters come with nothing else, or beside the weights that they change; alone neither is the model.

    Raises:
        CheckpointError: the folder holds one.
    """
    adapter = json_of(folder, _ADAPTER)
    if adapter is not None:
        raise CheckpointError(
            f"{folder} holds an adapter ({shown(adapter.get('peft_type', 'LoRA'))}) of the model "
            f"{shown(adapter.get('base_model_name_or_path'))}, which is not part of any weights yet; merge "
            "it once, with peft: "
            "PeftModel.from_pretrained(base, FOLDER).merge_and_unload().save_pretrained(NEW), and give NEW"
        )


def _sharded(folder: Path, name: str, index: Mapping[str, Any]) -> FolderWeights:
    where, table = str(folder / name), index.get("weight_map")
    if not isinstance(table, Mapping) or not table:
        raise CheckpointError(f"{where} has no weight_map; expected the file of each weight")
    files = {str(weight): within(folder, file, where) for weight, file in table.items()}
    parts = sorted(set(files.values()))
    absent = [part.name for part in parts if not has_file(part, CheckpointError)]
    if absent:
        raise CheckpointError(
            f"{where} names {len(parts)} parts and {len(absent)} of them are missing: {shown(absent)}; "
            "download the folder whole"
        )
    of_part: dict[Path, set[str]] = {part: set() for part in parts}
    for weight, part in files.items():
        of_part[part].add(weight)
    for part in parts:
        gone = of_part[part].difference(_names(part))
        if gone:
            raise CheckpointError(
                f"{part} does not hold the weight {shown(min(gone))} that {name} says it does"
            )
    return FolderWeights(files, where)


def _names(path: Path) -> list[str]:
    held = _open(path)
    return list(held) if isinstance(held, Mapping) else list(held.keys())


def _open(path: Path) -> Any:
    """A file's tensors by name, or a reader of safetensors."""
    if is_pointer(path):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS and not the weights; run `git lfs pull` in {path.parent}"
        )
    if path.suffix != ".safetensors":
        content = read_container(path)
        if not isinstance(content, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        ):
            raise CheckpointError(f"{path} is not a table of tensors by name")
        return content
    from safetensors import SafetensorError, safe_open

    check_header(path)
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({shown(error)}); download it again"
        ) from error


def _missing(folder: Path, names: tuple[str, ...]) -> str:
    found = sorted(path.name for path in folder.iterdir())
    expected = f"expected {' or '.join(names)}"
    for name, whose in _OTHER.items():
        if name in found:
            return (
                f"{folder} holds {whose} weights alone ({name}); {expected}. Convert them once, with "
                "transformers: AutoModel.from_pretrained(FOLDER, from_tf=True or from_flax=True)"
                ".save_pretrained(FOLDER)"
            )
    parts = [name for name in found if name.endswith((".safetensors", ".bin"))]
    if parts:
        return (
            f"{folder} holds {shown(parts)} without an index that says which weight is where; {expected}, or "
            "the parts with their .index.json"
        )
    return f"{folder} holds no weights ({shown(found)}); {expected}. Download the folder whole"
