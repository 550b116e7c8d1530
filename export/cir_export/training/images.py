"""Pictures of a data set as a model's input: kept where they fit into memory, else decoded by processes."""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cir_eval.pictures import digest_of_pictures
from cir_infer.bundle.manifest import CenterCrop, FeatureInput, PixelInput
from cir_infer.console.progress import progress_bar
from cir_infer.errors import CirError, TrainingError
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.preprocess import preprocess

__all__ = ["Images", "in_processes", "uncropped"]

_PIXELS_OF_A_BATCH = 64 * 224 * 224
_IMAGES_OF_A_BATCH = 256
_Key = TypeVar("_Key")
_Made = TypeVar("_Made")
Array = npt.NDArray[Any]


class Images:
    """Pictures by row, preprocessed as a device does.

    Args:
        images: paths, arrays or features, by row.
        spec: how a picture becomes the model's input.
        memory: bytes that decoded pictures may take; more are decoded whenever they are asked for.
        workers: processes that decode then.
        threads: threads that decode what is kept.
        name: what is decoded, for the progress bar.
        augmentation: as in `TrainingSettings`, for `take` with dice.
    """

    def __init__(
        self,
        images: Sequence[ImageLike],
        spec: PixelInput | FeatureInput,
        memory: int,
        workers: int,
        threads: int = 1,
        name: str = "images",
        augmentation: str = "none",
    ) -> None:
        self.images = images
        self.workers = workers
        self._spec = uncropped(spec) if "crop" in augmentation else spec
        self._final = spec
        self._flips = "flip" in augmentation
        self._kept: Array | None = None
        if isinstance(self._spec, PixelInput):
            shape: tuple[int, ...] = (self._spec.height, self._spec.width, 3)
            kind: type[np.generic] = np.uint8
        else:
            shape, kind = (self._spec.size,), np.float32
            if self._flips or "crop" in augmentation:
                raise TrainingError(
                    f"training.augmentation: {augmentation} changes pixels; the model reads features, so "
                    "expected none"
                )
        if len(images) * int(np.prod(shape)) * np.dtype(kind).itemsize <= memory:
            self._kept = self._decode_all((len(images), *shape), kind, threads, name)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether every picture is decoded once and kept."""
        return self._kept is not None

    def take(self, rows: Sequence[int], dice: Sequence[np.random.Generator] | None = None) -> Array:
        """Some pictures: uint8 (n, H, W, 3) or float32 (n, F).

        Args:
            rows: which.
            dice: one a row, for flips and crops; None takes the centre and turns nothing around.

        Raises:
            ImageError: a picture is missing or damaged.
        """
        found = [self._one(int(row)) for row in rows]
        if isinstance(self._final, PixelInput):
            found = [self._cut(one, None if dice is None else dice[n]) for n, one in enumerate(found)]
        return np.stack(found)

    def digest(self) -> str:
        """Sha256 over what is read and how, in hexadecimal; see `digest_of_pictures`."""
        said = f"{self._final!r} {digest_of_pictures(self.images)}"
        return hashlib.sha256(said.encode()).hexdigest()

    def batches(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """Pictures in the order of `rows`, as many at a time as an encoder takes without much memory."""
        size = _IMAGES_OF_A_BATCH
        if isinstance(self._final, PixelInput):
            pixels = self._final.height * self._final.width
            size = max(1, min(size, _PIXELS_OF_A_BATCH // pixels))
        keys = [rows[start : start + size] for start in range(0, len(rows), size)]
        for found in in_processes(self.take, keys, 0 if self.in_memory else self.workers):
            yield torch.from_numpy(found)

    def _one(self, row: int) -> Array:
        if self._kept is not None:
            kept: Array = self._kept[row]
            return kept
        return preprocess(self.images[row], self._spec)

    def _cut(self, picture: Array, dice: np.random.Generator | None) -> Array:
        assert isinstance(self._final, PixelInput)
        height, width = self._final.height, self._final.width
        free = (picture.shape[0] - height, picture.shape[1] - width)
        # Halves are rounded to the even number, as `center_crop` does.
        top, left = (round(one / 2) if dice is None else int(dice.integers(one + 1)) for one in free)
        picture = picture[top : top + height, left : left + width]
        if self._flips and dice is not None and dice.integers(2):
            picture = picture[:, ::-1]
        return picture

    def _decode_all(self, shape: tuple[int, ...], kind: type[np.generic], threads: int, name: str) -> Array:
        kept: Array = np.empty(shape, kind)

        def decode(row: int) -> None:
            kept[row] = preprocess(self.images[row], self._spec)

        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(decode, range(len(kept)))
            for _ in progress_bar(done, len(kept), description=f"decoding {name}", unit="image"):
                pass
        return kept


def uncropped(spec: PixelInput | FeatureInput) -> PixelInput | FeatureInput:
    """The same preprocessing without the crop at its end, which training takes at random.

    Raises:
        TrainingError: it does not end in a crop of a square of known size.
    """
    steps = spec.steps if isinstance(spec, PixelInput) else ()
    before = steps[-2] if len(steps) > 1 else None
    size = getattr(before, "size", None)
    if not isinstance(spec, PixelInput) or not isinstance(steps[-1], CenterCrop) or not isinstance(size, int):
        raise TrainingError(
            "training.augmentation: a random crop needs pictures that are cropped; expected "
            'data.preparation = "padded-crop", or augmentation "flip" or "none"'
        )
    return replace(spec, height=size, width=size, steps=steps[:-1])


class _Failed:
    def __init__(self, error: CirError) -> None:
        self.error = error


class _Work(Dataset[Any], Generic[_Key, _Made]):
    """What a worker makes of a key; an error comes back as a value, without the worker's traceback."""

    def __init__(self, make: Callable[[_Key], _Made], keys: Sequence[_Key]) -> None:
        self._make, self._keys = make, keys

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int) -> _Made | _Failed:
        try:
            return self._make(self._keys[place])
        except CirError as error:
            return _Failed(error)


def in_processes(make: Callable[[_Key], _Made], keys: Sequence[_Key], workers: int) -> Iterator[_Made]:
    """What `make` gives for each key, in their order, a few ahead of whoever takes them.

    Args:
        make: gives plain arrays, so that nothing goes through shared memory.
        keys: what to make.
        workers: processes; 0 makes everything here.
    """
    if not workers or len(keys) < 2:
        yield from map(make, keys)
        return
    # A generator of its own: PyTorch's would take a number from the one that dropout draws from.
    loader = DataLoader(
        _Work(make, keys),
        batch_size=None,
        num_workers=min(workers, len(keys)),
        collate_fn=_unchanged,
        generator=torch.Generator(),
    )
    before = signal.getsignal(signal.SIGCHLD)
    try:
        for found in loader:
            if isinstance(found, _Failed):
                raise found.error
            yield found
    finally:
        # PyTorch's handler would stay, and run at the end of every child that this process ever has.
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _unchanged(found: Any) -> Any:
    return found
