"""Encoders that a training leaves as they are for a while: each picture and text goes through them once.

What a frozen trunk makes of a picture is kept in a file beside the training, so that the next one, or a
continued one, has it already. The model takes a kept row in place of the picture:

| the model reads of its frozen part | a row holds |
|---|---|
| the trunk's pooled last map (systems whose gallery row is the reference) | that |
| the trunk's maps | those that it reads, in half precision where the training is |
| an image tower's embedding (CLIP) | that |

Texts are kept in memory as they come, where their encoder is frozen too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cir_export.models import RetrievalModel
from cir_export.models.encoders.image import PixelEncoder
from cir_export.models.encoders.pair import Pair
from cir_export.models.encoders.trunk import Trunk
from cir_export.training.configuration import TrainingSettings
from cir_export.training.images import Images
from cir_infer.console.progress import progress_bar
from cir_infer.errors import TrainingError
from cir_infer.processes.outputs import replacing

__all__ = ["Kept", "kept_while_frozen"]

_ROWS_AT_ONCE = 256


def kept_while_frozen(
    model: RetrievalModel, settings: TrainingSettings, folder: Path, device: torch.device
) -> Kept | None:
    """What keeps the frozen part's rows; None where there is nothing to gain, or pictures are altered.

    It holds for the first `frozen_epochs` epochs. One such epoch before others that train everything gains
    nothing.
    """
    lasting = settings.frozen_epochs > 1 or settings.frozen_epochs >= settings.epochs
    found = _frozen_part(model)
    if not lasting or settings.augmentation != "none" or found is None:
        return None
    part, maps = found
    half = maps and settings.precision != "float32"
    return Kept(model, part, np.dtype(np.float16 if half else np.float32), folder, device)


class Kept:
    """Rows of pictures, and embeddings of texts, of a model whose trunks stay as they are.

    Args:
        model: with its trunks frozen.
        part: from images to the rows (n, K) that `model` takes in their place.
        kind: what rows are stored as.
        folder: where they are kept.
        device: of the model.
    """

    def __init__(
        self,
        model: RetrievalModel,
        part: Callable[[Tensor], Tensor],
        kind: np.dtype[Any],
        folder: Path,
        device: torch.device,
    ) -> None:
        self._model, self._part, self._kind = model, part, kind
        self._folder, self._device = folder, device
        for trunk in model.trunks():
            trunk.eval()
        weights = hashlib.sha256()
        for trunk in model.trunks():
            for name, tensor in trunk.state_dict().items():
                weights.update(name.encode())
                weights.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self._weights = weights.digest()
        self._rows: dict[int, Tensor] = {}
        self._texts: dict[tuple[str, ...], Tensor] = {}

    def rows(self, images: Images) -> Tensor:
        """The rows of all pictures, (N, K), mapped from the file.

        Raises:
            TrainingError: the file cannot be written.
        """
        if id(images) not in self._rows:
            # The first picture's row says, beside the weights, all else that a row depends on.
            first = self._encoded(torch.from_numpy(images.take([0])))
            own = hashlib.sha256(self._weights + first.tobytes()).hexdigest()
            path = self._folder / f"encoded-{images.digest()[:16]}-{own[:16]}.npy"
            shape = (len(images), first.shape[1])
            found = _mapped(path, shape, self._kind)
            if found is None:
                self._write(images, shape, path)
                found = np.load(path, mmap_mode="c")
            self._rows[id(images)] = torch.from_numpy(found)
        return self._rows[id(images)]

    def batches(self, images: Images, rows: Sequence[int]) -> Iterator[Tensor]:
        """What `Images.batches` gives, as rows in place of pictures."""
        kept = self.rows(images)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield kept[torch.tensor(rows[start : start + _ROWS_AT_ONCE])]

    def texts(self, texts: Sequence[tuple[str, ...]], tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embeddings of texts, (n, H); of a frozen encoder those that are new are encoded, in float32."""
        if not self._model.encoders_in_trunks:
            return self._model.encode_text(tokens, lengths)
        new = [place for place, text in enumerate(texts) if text not in self._texts]
        if new:
            part = torch.tensor(new)
            with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
                found = self._model.encode_text(tokens[part.to(tokens.device)], lengths[part]).float()
            for place, row in zip(new, found.cpu(), strict=True):
                self._texts[texts[place]] = row.clone()
        return torch.stack([self._texts[text] for text in texts]).to(self._device)

    def _encoded(self, images: Tensor) -> npt.NDArray[Any]:
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):
            rows: npt.NDArray[Any] = self._part(images.to(self._device)).float().cpu().numpy()
        return rows.astype(self._kind)

    def _write(self, images: Images, shape: tuple[int, int], path: Path) -> None:
        header = {"descr": self._kind.str, "fortran_order": False, "shape": shape}
        try:
            # Written, not mapped: a full disk is an error then, and not the end of the process.
            with replacing(path) as file:
                np.lib.format.write_array_header_1_0(file, header)
                batches = images.batches(range(len(images)))
                for found in progress_bar(batches, None, description="encoding once", unit="batch"):
                    file.write(self._encoded(found).tobytes())
        except OSError as error:
            size = shape[0] * shape[1] * self._kind.itemsize
            raise TrainingError(
                f"{path} cannot be written: {error.strerror}; it takes {size / 1e9:.1f} GB. Frozen encoders "
                "are encoded once and kept there"
            ) from error


def _mapped(path: Path, shape: tuple[int, int], kind: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Rows that an earlier training has kept; None where there are none, or the file was cut short."""
    try:
        found: npt.NDArray[Any] = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == kind else None


def _frozen_part(model: RetrievalModel) -> tuple[Callable[[Tensor], Tensor], bool] | None:
    """From images to what the model takes in their place, and whether that is maps; None for neither."""
    pair = getattr(model, "clip", getattr(model, "pair", None))
    if isinstance(pair, Pair):
        return pair.encode_image, False
    encoder: Any = getattr(model, "image_encoder", model)
    trunk = getattr(encoder, "trunk", None)
    if not isinstance(trunk, Trunk):
        return None
    if isinstance(encoder, PixelEncoder) and model.reference_is_gallery_row:
        return lambda images: trunk.keep([encoder.pooled(images)]), False
    return lambda images: trunk.keep(trunk.maps(encoder.normalize(images))[-model.trunk_levels :]), True
