"""A small convolutional bundle, made with ONNX operators alone, whose layers can be spoilt one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto
from PIL import Image

from cir_infer.bundle import write_bundle
from cir_infer.bundle.manifest import CenterCrop, PixelInput, Resize, ToRgb
from tests.bundles import DIM, GraphBuilder, manifest_of, members_of

SIDE = 16
CHANNELS = 12


def convolutional(path: Path, scale: float = 1.0, outlier: float = 1.0) -> Path:
    """ARTEMIS over three convolutions, generalised mean and a projection.

    Args:
        path: where to.
        scale: of what "first" gives; "second" takes it back. Changes nothing in float32.
        outlier: of the channel of "first" that "second" hardly reads. Changes little in float32.
    """
    random = np.random.default_rng(5)
    g = GraphBuilder()
    g.add("Cast", ["image"], "read", to=TensorProto.FLOAT)
    g.add("Transpose", ["read"], "float", perm=[0, 3, 1, 2])
    g.constant("m.half", 127.5)
    g.add("Sub", ["float", "m.half"], "centred")
    g.add("Div", ["centred", "m.half"], "prepared")
    weights = [
        random.normal(size=(CHANNELS, ins, 3, 3)) / np.sqrt(9 * ins) for ins in (3, CHANNELS, CHANNELS)
    ]
    weights[0] *= scale
    weights[0][0] *= outlier
    weights[1] /= scale
    weights[1][:, 0] /= outlier
    x = "prepared"
    for name, weight in zip(("first", "second", "third"), weights, strict=True):
        g.constant(f"m.{name}.weight", weight)
        g.constant(f"m.{name}.bias", random.normal(size=CHANNELS) * 0.1 * (scale if name == "first" else 1))
        added = g.add("Conv", [x, f"m.{name}.weight", f"m.{name}.bias"], f"{name}_out", pads=[1, 1, 1, 1])
        x = g.add("Relu", [added], f"{name}_relu")
    g.add("Add", [x, "second_relu"], "residual")
    g.constant("m.floor", 1e-6)
    g.add("Clip", ["residual", "m.floor"], "positive")
    g.add("Mul", ["positive", "positive"], "square")
    g.add("Mul", ["square", "positive"], "cube")
    g.add("ReduceMean", ["cube"], "mean", axes=[2, 3], keepdims=0)
    g.constant("m.third_root", 1 / 3)
    g.add("Pow", ["mean", "m.third_root"], "pooled")
    g.constant("m.project.weight", random.normal(size=(DIM, CHANNELS)))
    g.constant("m.project.bias", random.normal(size=DIM))
    g.add("Gemm", ["pooled", "m.project.weight", "m.project.bias"], "linear", transB=1)
    g.l2("linear", "embedding")
    image = g.model({"image": ("u8", ["n", SIDE, SIDE, 3])}, {"embedding": ("f32", ["n", DIM])})
    members = {**members_of("artemis"), "image.onnx": image}
    pixels = PixelInput(SIDE, SIDE, (Resize(SIDE, "bilinear"), CenterCrop(SIDE), ToRgb()))
    write_bundle(path, replace(manifest_of("artemis"), image=pixels), members)
    return path


def photographs(folder: Path, count: int = 48) -> Path:
    """Smooth coloured pictures."""
    folder.mkdir()
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder
