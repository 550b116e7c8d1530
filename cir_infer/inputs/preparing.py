"""Images prepared by threads, one batch ahead of the graph that encodes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import ImageError, UsageError
from cir_infer.inputs.arguments import checked_list
from cir_infer.inputs.open_files import contents
from cir_infer.inputs.taken import taken
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.fork import PerProcess
from cir_infer.processes.threads import Task, Threads

__all__ = ["Preparation", "Prepared", "PreparedImage", "checked_images"]

Array = npt.NDArray[Any]
Prepared = list[Array | ImageError]
"""A batch: each image as the graph takes it, or why it cannot be read."""

_MOST_THREADS = 8


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as an engine's encoders take it, made beforehand with `Engine.prepare_image`.

    Attributes:
        array: uint8 (H, W, 3), or float32 (F,) for a bundle on features.
        spec: how it was made, the manifest's `image`.
    """

    array: Array
    spec: object

    def array_for(self, spec: object) -> Array:
        """The array, for an engine whose manifest says `spec`.

        Raises:
            ImageError: another engine prepares images in another way.
        """
        if self.spec != spec:
            raise ImageError("the image was prepared by the engine of another bundle; pass the image itself")
        return self.array


class Preparation:
    """Decodes and prepares images beside the caller.

    Args:
        prepare: makes an array of an image, or raises `ImageError`.
    """

    def __init__(self, prepare: Callable[[Any], Array]) -> None:
        self._prepare = prepare
        self._threads: PerProcess[Threads] = PerProcess(
            partial(Threads, min(_MOST_THREADS, available_cpus()))
        )

    def close(self) -> None:
        """Let the threads end."""
        threads = self._threads.drop()
        if threads is not None:
            threads.close()

    def batches(self, images: Iterable[Any], size: int) -> Iterator[Prepared]:
        """The images in batches of at most `size`, in order.

        While the caller works on one batch, threads prepare the next; no more is taken from `images`.
        """
        if isinstance(images, Sequence) and len(images) == 1:
            yield [self._tried(images[0])]  # nothing to do meanwhile, so no thread to wake
            return
        threads = self._threads.get()
        remaining = iter(images)
        waiting: deque[list[Task[Array | ImageError]]] = deque()
        try:
            while chunk := [self._begun(threads, image) for image in islice(remaining, size)]:
                waiting.append(chunk)
                if len(waiting) > 1:
                    yield [task.result() for task in waiting[0]]
                    waiting.popleft()
            while waiting:
                yield [task.result() for task in waiting[0]]
                waiting.popleft()
        finally:
            for task in chain.from_iterable(waiting):
                task.cancel()

    def _begun(self, threads: Threads, image: Any) -> Task[Array | ImageError]:
        if not isinstance(image, PreparedImage):
            return threads.submit(self._tried, self._taken(image))
        done = Task(partial(self._tried, image))  # there is nothing to do for which to wake a thread
        done.run()
        return done

    def _taken(self, image: Any) -> Any:
        """An open file is read here: its position is the caller's, and threads would share it."""
        try:
            return contents(image)
        except ImageError as error:
            return error

    def _tried(self, image: Any) -> Array | ImageError:
        try:
            if isinstance(image, ImageError):
                return image
            return self._prepare(contents(image))
        except ImageError as error:
            return error


def checked_images(images: Any, features: bool) -> Iterable[Any]:
    """Several images, and not one; of an iterator as `taken` has them.

    Args:
        images: what was passed.
        features: whether an image is an array of features, (F,).

    Raises:
        UsageError: one image, or something that is no list of images.
    """
    single = 1 if features else 3
    if isinstance(images, np.ndarray) and images.ndim <= single and images.dtype.kind in "biuf":
        raise UsageError(
            f"images is one image ({images.dtype} {images.shape}); expected a list of images, [image] for one"
        )
    checked: Iterable[Any] = taken(checked_list("images", images, "image"))
    return checked
