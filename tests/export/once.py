"""The graphs of a model that several tests need and none of them judges, exported once for all workers."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_export import export
from cir_export.graphs import export_graphs
from cir_export.models import RetrievalModel
from cir_export.weights import WeightsFile

_READ = ("kind", "height", "width", "size")
"""What an export reads of an image's description."""


class Once:
    """Exports seconds long, kept in a folder: equal models have equal graphs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def graphs(
        self,
        model: RetrievalModel,
        image: dict[str, Any],
        progress: bool = False,
        weights: WeightsFile | None = None,
        tokens: int | None = None,
    ) -> dict[str, bytes]:
        """As `export_graphs`; asked anew where weights lie beside the graphs."""
        if weights is not None:
            return export_graphs(model, image, progress, weights, tokens)
        path = self._folder / f"{_key(model, image)}.npz"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be exporting it
            if not path.exists():
                made = export_graphs(model, image, progress, tokens=tokens)
                half = path.with_suffix(".half.npz")
                np.savez(half, **{name: np.frombuffer(made[name], np.uint8) for name in made})
                half.replace(path)
        with np.load(path) as kept:
            return {name: kept[name].tobytes() for name in kept}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Within it `export_bundle` and `cir-export` take graphs from here, and verify them as ever."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "export_graphs", self.graphs)
            yield


def _key(model: RetrievalModel, image: dict[str, Any]) -> str:
    said = (type(model).__qualname__, model.config, [image.get(name) for name in _READ])
    digest = hashlib.sha256(repr(said).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]
