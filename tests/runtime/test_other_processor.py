"""Int8 graphs give the same on processors that this machine is none of; needs Debian's qemu-user-static."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import GraphBuilder

QEMU = shutil.which("qemu-x86_64-static")
WITHOUT_VNNI = "Haswell"
STEP = 8192
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from cir_infer.bundle.model import Model
from cir_infer.runtime.onnx import OnnxBackend
folder = Path(sys.argv[1])
for path in sorted(folder.glob("*.onnx")):
    graph = OnnxBackend("cpu", 1).load("image", Model(path.read_bytes(), {}))
    found = graph.run({"image": np.load(path.with_suffix(".npy"))})
    np.save(path.with_suffix(".found.npy"), found["embedding"])
"""


def product_of_bytes(path: Path, layer: str, twice: bool = False) -> np.ndarray:
    """Writes a graph and what it is given; gives the right answer, (n, D).

    Args:
        path: of the graph.
        layer: "MatMul" or "Conv".
        twice: another product reads the same weight, and adds nothing.
    """
    random, width, count = np.random.default_rng(0), 32, 5
    weights = random.integers(-127, 128, (width, width)).astype(np.int8)
    given = random.integers(0, 256, (count, width)).astype(np.float32)
    is_matrix = layer == "MatMul"
    stored = weights if is_matrix else weights.T.reshape(width, width, 1, 1)
    g = GraphBuilder()
    g.constant("one", 1)
    g.constant("zero", 0, np.uint8)
    g.constant("weights", stored, np.int8)
    g.constant("zeros", np.zeros(width), np.int8)
    g.constant("ones", np.ones(width))
    g.add("DequantizeLinear", ["weights", "ones", "zeros"], "w", axis=1 if is_matrix else 0)
    g.add("QuantizeLinear", ["image", "one", "zero"], "bytes")
    g.add("DequantizeLinear", ["bytes", "one", "zero"], "x")
    expected = given @ weights
    if twice:
        g.add(layer, ["x", "w"], "sums")
        g.constant("nothing", 0)
        g.add("Mul", ["x", "nothing"], "none")
        g.add("QuantizeLinear", ["none", "one", "zero"], "no_bytes")
        g.add("DequantizeLinear", ["no_bytes", "one", "zero"], "still_none")
        g.add(layer, ["still_none", "w"], "added")
        g.add("Add", ["sums", "added"], "embedding")
    elif is_matrix:
        g.add(layer, ["x", "w"], "embedding")
    else:  # of bytes only where it gives bytes, too
        g.constant("step", STEP)
        g.constant("middle", 128, np.uint8)
        g.add(layer, ["x", "w"], "sums")
        g.add("QuantizeLinear", ["sums", "step", "middle"], "stored")
        g.add("DequantizeLinear", ["stored", "step", "middle"], "embedding")
        expected = STEP * np.rint(expected / STEP)
        assert np.abs(expected).max() < 127 * STEP
    free = ["n", width] if is_matrix else ["n", width, 1, 1]
    path.write_bytes(g.model({"image": ("f32", free)}, {"embedding": ("f32", free)}))
    np.save(path.with_suffix(".npy"), given.reshape(count, *free[1:]))
    return expected


@pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="there is no qemu-x86_64-static")
def test_products_of_bytes_are_exact_without_instructions_for_them(tmp_path: Path) -> None:
    """There they are added in pairs in 16 bits, which two of 255 * 127 leave."""
    expected = {
        "matrix": product_of_bytes(tmp_path / "matrix.onnx", "MatMul"),
        "twice": product_of_bytes(tmp_path / "twice.onnx", "MatMul", twice=True),
        "convolution": product_of_bytes(tmp_path / "convolution.onnx", "Conv"),
    }
    assert QEMU is not None
    command = [QEMU, "-cpu", WITHOUT_VNNI, sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, values in expected.items():
        found = np.load(tmp_path / f"{name}.found.npy").reshape(values.shape)
        np.testing.assert_array_equal(found, values, name)
