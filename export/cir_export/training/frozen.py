"""Encoders that a training leaves as they are: every picture and text goes through them once, and is kept.

Pictures' embeddings lie in a file beside the training, so that the next one, or a continued one, has them
already; texts' are kept in memory, as they come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cir_export.models import RetrievalModel
from cir_export.training.configuration import TrainingSettings
from cir_export.training.images import Images
from cir_infer.console.progress import progress_bar
from cir_infer.errors import TrainingError

__all__ = ["KeptEncodings", "stay_frozen"]


def stay_frozen(model: RetrievalModel, settings: TrainingSettings) -> bool:
    """Whether both encoders give the same all along: frozen to the end, and no picture altered."""
    return (
        model.encoders_in_trunks
        and settings.frozen_epochs >= settings.epochs
        and settings.augmentation == "none"
        and model.reference_is_gallery_row
    )


class KeptEncodings:
    """Embeddings of pictures and texts of a model whose encoders stay as they are.

    Args:
        model: whose trunks hold both encoders.
        folder: where the embeddings of pictures are kept.
        device: of the model.
    """

    def __init__(self, model: RetrievalModel, folder: Path, device: torch.device) -> None:
        self._model, self._folder, self._device = model, folder, device
        for part in model.trunks():
            part.eval()
        weights = hashlib.sha256()
        for part in model.trunks():
            for name, tensor in part.state_dict().items():
                weights.update(name.encode())
                weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self._weights = weights.hexdigest()
        self._rows: dict[int, Tensor] = {}
        self._texts: dict[tuple[str, ...], Tensor] = {}

    def rows(self, images: Images) -> Tensor:
        """Embeddings of all pictures, float32 (N, D), mapped from the file.

        Raises:
            TrainingError: the file cannot be written.
        """
        if id(images) not in self._rows:
            path = self._folder / f"encoded-{images.digest()[:16]}-{self._weights[:16]}.npy"
            if not path.is_file():
                self._encode(images, path)
            self._rows[id(images)] = torch.from_numpy(np.load(path, mmap_mode="c"))
        return self._rows[id(images)]

    @torch.no_grad()
    def texts(self, texts: Sequence[tuple[str, ...]], tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings of texts, float32 (n, H); those that are new are encoded."""
        new = [place for place, text in enumerate(texts) if text not in self._texts]
        if new:
            part = torch.tensor(new)
            with torch.autocast(self._device.type, enabled=False):
                found = self._model.encode_text(tokens[part.to(tokens.device)], lengths[part]).float()
            for place, row in zip(new, found.cpu(), strict=True):
                self._texts[texts[place]] = row.clone()
        return torch.stack([self._texts[text] for text in texts]).to(self._device)

    @torch.no_grad()
    def _encode(self, images: Images, path: Path) -> None:
        partial = path.with_suffix(".partial")
        try:
            kept = np.lib.format.open_memmap(
                partial, "w+", np.float32, (len(images), self._model.embedding_dim)
            )
            done = 0
            batches = images.batches(range(len(images)))
            for part in progress_bar(batches, None, description="encoding once", unit="batch"):
                kept[done : done + len(part)] = (
                    self._model.encode_gallery(part.to(self._device)).float().cpu()
                )
                done += len(part)
            kept.flush()
            partial.replace(path)
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error.strerror}") from error
