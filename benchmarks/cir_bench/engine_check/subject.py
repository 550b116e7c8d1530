"""What is checked: one bundle on the GPU and on the CPU, over one gallery, with queries to ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.latency.workload import draw_workload
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import FeatureInput
from cir_infer.engine import Engine
from cir_infer.gallery import Gallery
from cir_infer.inputs.images import load_image
from cir_infer.inputs.texts import Text
from cir_infer.searcher import Searcher

__all__ = ["K", "Subject", "open_subject"]

K = 50
_BLOCK = 65_536


@dataclass(frozen=True, eq=False)
class Subject:
    """A bundle under check.

    Attributes:
        bundle: its path.
        searcher: on the device that is checked.
        cpu: the same bundle on the CPU, which is what is right.
        images: references, decoded.
        texts: as many modifiers.
    """

    bundle: Path
    searcher: Searcher
    cpu: Engine
    images: list[Any]
    texts: list[Text]


def open_subject(bundle: Path, folder: Path, rows: int, device: str = "tensorrt", seed: int = 0) -> Subject:
    """Open a bundle on a device, over a gallery of random directions that is made in `folder`.

    Builds what plans are missing.

    Raises:
        DeviceError: the device cannot be used, or a plan cannot be built.
    """
    cpu = Engine(bundle, device="cpu")
    random = np.random.default_rng(seed)
    vectors = np.empty((rows, cpu.dimension), np.float16)
    for start in range(0, rows, _BLOCK):
        part = random.standard_normal((min(_BLOCK, rows - start), cpu.dimension), dtype=np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    gallery = Gallery.from_arrays(
        folder / f"{bundle.stem}.gallery", ids=[str(i) for i in range(rows)], vectors=vectors, engine=cpu
    )
    workload = draw_workload(Bundle(bundle), gallery.snapshot(), seed=seed)
    features = isinstance(cpu.manifest.image, FeatureInput)
    images = [
        image if features else np.asarray(load_image(image).convert("RGB")) for image in workload.images
    ]
    return Subject(
        bundle, Searcher(Engine(bundle, device=device), gallery), cpu, images, list(workload.texts)
    )
