"""A decoding process: `python -m cir_infer.indexing.worker`, started by `decoding`.

On stdin: the bundle's manifest as one line of JSON, then a line for each batch: a list of [path, offset,
size or null]. On stdout: a line "ready", then for each batch a line of JSON, {"reasons": [null or
text, ...], "shape": [n, ...], "dtype": "uint8"}, and the n images that could be prepared as bytes. Nothing is
pickled, so nothing that is sent can run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import FeatureInput, PixelInput
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.errors import CirError
from cir_infer.indexing.items import Location
from cir_infer.inputs.preprocess import preprocess

__all__ = ["main", "prepare"]


def prepare(
    locations: list[Location], spec: PixelInput | FeatureInput
) -> tuple[npt.NDArray[Any], list[str | None]]:
    """Read and prepare images.

    Returns:
        Those that could be prepared, uint8 (n, H, W, 3) or float32 (n, F), and for each location None
        or the reason why it could not.
    """
    images: list[npt.NDArray[Any]] = []
    reasons: list[str | None] = []
    for location in locations:
        try:
            features = isinstance(spec, FeatureInput)
            images.append(preprocess(location.path if features else location.read(), spec))
            reasons.append(None)
        except CirError as error:
            reasons.append(str(error))
    return np.stack(images) if images else np.empty(0, np.uint8), reasons


def main() -> None:
    """Answer batches until stdin ends."""
    # An interrupt is for the parent; this process ends when its stdin does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints must not come between
    spec = read_manifest(requests.readline()).image
    answers.write(b"ready\n")
    answers.flush()
    for line in requests:
        images, reasons = prepare([Location(*entry) for entry in json.loads(line)], spec)
        head = {"reasons": reasons, "shape": images.shape, "dtype": str(images.dtype)}
        answers.write(json.dumps(head).encode() + b"\n")
        answers.write(images.data)
        answers.flush()


if __name__ == "__main__":
    main()
