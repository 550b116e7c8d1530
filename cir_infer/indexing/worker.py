"""A decoding process: `python -m cir_infer.indexing.worker`, started by `decoding`.

On stdin: the bundle's manifest as one line of JSON, then a line for each batch: a list of [path, offset,
size or null, column or null]. On stdout: a line "ready", then for each batch a line of JSON, {"faults":
[null or [reason, whether it lasts], ...], "digests": [n texts], "shape": [n, ...], "dtype": "uint8"}, and the
n images that could be prepared as bytes. Nothing is pickled, so nothing that is sent can run.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import FeatureInput, PixelInput
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.errors import CirError, ImageError, lack, shown
from cir_infer.indexing.items import Fault, digest_of
from cir_infer.inputs.arrays import loaded_array
from cir_infer.inputs.images import ready_for_pictures
from cir_infer.inputs.locations import Location, read_each
from cir_infer.inputs.preprocess import preprocess

__all__ = ["Prepared", "main", "prepare"]


class Prepared(NamedTuple):
    """Images that were read and prepared.

    Attributes:
        images: those that could be, uint8 (n, H, W, 3) or float32 (n, F).
        faults: for each location None, or why it could not.
        digests: of the bytes of the n images.
    """

    images: npt.NDArray[Any]
    faults: list[Fault | None]
    digests: list[str]


def prepare(locations: list[Location], spec: PixelInput | FeatureInput) -> Prepared:
    """Read and prepare images."""
    images: list[npt.NDArray[Any]] = []
    faults: list[Fault | None] = []
    digests: list[str] = []
    for location, data in zip(locations, read_each(locations), strict=True):
        try:
            if isinstance(data, CirError):
                raise data
            image = _features(location, data) if isinstance(spec, FeatureInput) else data
            images.append(preprocess(image, spec))
            digests.append(digest_of(data))
            faults.append(None)
        except CirError as error:
            unread = isinstance(data, CirError)
            faults.append(Fault(str(error), lasting=not unread and lack(error) is None))
    return Prepared(np.stack(images) if images else np.empty(0, np.uint8), faults, digests)


def _features(location: Location, data: bytes) -> npt.NDArray[Any]:
    """Features from the bytes of a .npy file, wherever these lie."""
    try:
        return loaded_array(io.BytesIO(data))
    except Exception as error:  # NumPy answers damage with errors of many types
        raise ImageError(f"{location} is not a .npy file ({shown(error)})") from error


def main() -> None:
    """Answer batches until stdin ends."""
    # An interrupt is for the parent; this process ends when its stdin does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    spec = read_manifest(requests.readline()).image
    if isinstance(spec, PixelInput):
        ready_for_pictures()
    # What a decoder prints must not come between the answers, nor onto the terminal: errors are answers.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    answers.write(b"ready\n")
    answers.flush()
    for line in requests:
        done = prepare([Location(*entry) for entry in json.loads(line)], spec)
        head = {
            "faults": done.faults,
            "digests": done.digests,
            "shape": done.images.shape,
            "dtype": str(done.images.dtype),
        }
        answers.write(json.dumps(head).encode() + b"\n")
        answers.write(done.images.data)
        answers.flush()


if __name__ == "__main__":
    main()
