"""Int8 graphs give the same on processors that this machine is none of; needs Debian's qemu-user-static."""

from __future__ import annotations

import os
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
import numpy as np
from cir_infer.bundle.model import Model
from cir_infer.runtime.onnx import OnnxBackend
graph = OnnxBackend("cpu", 1).load("image", Model(open(sys.argv[1], "rb").read(), {}))
given = np.load(sys.argv[2])
np.save(sys.argv[3], graph.run({"image": given})["embedding"])
"""


@pytest.mark.skipif(QEMU is None or platform.machine() != "x86_64", reason="there is no qemu-x86_64-static")
@pytest.mark.parametrize("layer", ["MatMul", "Conv"])
def test_products_of_bytes_are_exact_without_instructions_for_them(layer: str, tmp_path: Path) -> None:
    """There they are added in pairs in 16 bits, which two of 255 * 127 leave."""
    random, width, count = np.random.default_rng(0), 32, 5
    weights = random.integers(-127, 128, (width, width)).astype(np.int8)
    given = random.integers(0, 256, (count, width)).astype(np.float32)
    shape = (count, width) if layer == "MatMul" else (count, width, 1, 1)
    stored = weights if layer == "MatMul" else weights.T.reshape(width, width, 1, 1)
    g = GraphBuilder()
    g.constant("one", 1)
    g.constant("zero", 0, np.uint8)
    g.constant("weights", stored, np.int8)
    g.constant("zeros", np.zeros(width), np.int8)
    g.constant("ones", np.ones(width))
    g.add("DequantizeLinear", ["weights", "ones", "zeros"], "w", axis=1 if layer == "MatMul" else 0)
    g.add("QuantizeLinear", ["image", "one", "zero"], "bytes")
    g.add("DequantizeLinear", ["bytes", "one", "zero"], "x")
    expected = given @ weights
    if layer == "MatMul":
        g.add(layer, ["x", "w"], "embedding")
    else:  # of bytes only where it gives bytes, too
        g.constant("step", STEP)
        g.constant("middle", 128, np.uint8)
        g.add(layer, ["x", "w"], "sums")
        g.add("QuantizeLinear", ["sums", "step", "middle"], "stored")
        g.add("DequantizeLinear", ["stored", "step", "middle"], "embedding")
        expected = STEP * np.rint(expected / STEP)
        assert np.abs(expected).max() < 127 * STEP
    free = ["n", *shape[1:]]
    model = tmp_path / "graph.onnx"
    model.write_bytes(g.model({"image": ("f32", free)}, {"embedding": ("f32", free)}))
    np.save(tmp_path / "given.npy", given.reshape(shape))
    assert QEMU is not None
    command = [QEMU, "-cpu", WITHOUT_VNNI, sys.executable, "-c", PROGRAM]
    files = [str(model), str(tmp_path / "given.npy"), str(tmp_path / "found.npy")]
    done = subprocess.run(
        [*command, *files], capture_output=True, text=True, env={**os.environ, "CIR_GRAPH_CACHE": "off"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy").reshape(count, width), expected)
