"""Many different pictures of the kind that a check asks with, at little cost."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["another", "write_pictures"]

_PHOTOGRAPH = (500, 375)


def another(image: npt.NDArray[Any], seed: int) -> npt.NDArray[Any]:
    """Another image of the same kind: a part of a picture in other colours; features with noise."""
    random = np.random.default_rng(seed)
    if image.dtype != np.uint8:
        return (image + 0.1 * random.standard_normal(image.shape)).astype(np.float32)
    sides = np.maximum(1, np.array(image.shape[:2]) * random.uniform(0.3, 1)).astype(int)
    top, left = random.integers(0, np.array(image.shape[:2]) - sides + 1)
    part = image[top : top + sides[0], left : left + sides[1], random.permutation(3)]
    coloured = part * random.uniform(0.5, 1.5, 3) + random.uniform(-40, 40)
    return np.clip(coloured, 0, 255).astype(np.uint8)


def write_pictures(folder: Path, seeds: Iterable[int]) -> Path:
    """Parts of generated photographs, as files of a new folder."""
    from PIL import Image

    from cir_bench.latency.workload import photograph
    from cir_infer.inputs.images import load_image

    folder.mkdir()
    for seed in seeds:
        whole = np.asarray(load_image(photograph(*_PHOTOGRAPH, seed)).convert("RGB"))
        Image.fromarray(another(whole, seed)).save(folder / f"{seed}.png")
    return folder
