"""Blocks that wait for one another: the checked machine notices every lost barrier, fence, count and wait."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.text_graph import match_text_graph
from tests.emulation import planted
from tests.emulation.emulated import RECURRENT, EmulatedDevice, KernelFault
from tests.runtime.recurrent.graphs import recurrent_graph

FAULT = rf"{planted.FAULT}|others that never come"
MODELS = (
    recurrent_graph("GRU", hidden=30, out=21),
    recurrent_graph("LSTM", directions=1, hidden=21, over_time=True, width=5),
)
FEEDS = {"tokens": np.array([[3, 1, 4, 1, 5]], np.int32), "lengths": np.array([5], np.int32)}

FENCED = "    device::barrier();\n    if (device::thread() == 0) {\n        device::release();"
COUNTED = "device::release();\n        device::add(arrival(args, which), 1);"
EDITS = {
    "a wait that does not wait": ("!device::wait_for(", "!PLANTED && !device::wait_for("),
    "a wait for one step less": ("step * blocks)", "step * blocks - PLANTED * blocks)"),
    "a wait for one block less": ("step * blocks -", "step * blocks - PLANTED -"),
    "a wait for one block more": ("step * blocks -", "step * blocks + PLANTED -"),
    "a wait for the other direction": (
        "kFirstDirection + direction, ",
        "kFirstDirection + (PLANTED ? (direction ^ 1) * (args.directions - 1) : direction), ",
    ),
    "pooled states of too few blocks": ("kPooled, all_blocks)", "kPooled, all_blocks - PLANTED)"),
    "a text of too few blocks": ("last, all_blocks)", "last, all_blocks - PLANTED)"),
    "an arrival that is not counted": (
        "kFirstDirection + direction);",
        "kFirstDirection + direction + 2 * (PLANTED && device::block_x() == 0));",
    ),
    "states of other blocks from a cache": (
        "device::load_fresh(from + i)",
        "(PLANTED ? from[i] : device::load_fresh(from + i))",
    ),
    "a fence before the barrier": (
        FENCED,
        "    if (PLANTED && device::thread() == 0) device::release(); device::barrier();\n"
        "    if (device::thread() == 0) {\n        if (!PLANTED) device::release();",
    ),
    "no fence before the count": (COUNTED, f"if (!PLANTED) {COUNTED}"),
    "a fence after the count": (COUNTED, f"if (!PLANTED) {COUNTED} if (PLANTED) device::release();"),
    "a count without atomics": (
        "device::add(arrival(args, which), 1);",
        "if (PLANTED) *arrival(args, which) = *arrival(args, which) + 1; else "
        "device::add(arrival(args, which), 1);",
    ),
    "a vector too many": ("v < vectors; v += 32", "v < vectors + PLANTED; v += 32"),
    "a state too many": ("i < count ?", "i < count + PLANTED ?"),
    "a value too many": (
        "i < args.out; i += kThreads) args.text",
        "i < args.out + PLANTED; i += kThreads) args.text",
    ),
    "a word too many": (
        "step + i < args.steps ? step + i",
        "step + i < args.steps + PLANTED ? step + i",
    ),
}
KINDS = planted.Planted(RECURRENT, {name: ("encode.cuh", *edit) for name, edit in EDITS.items()})


@pytest.fixture(scope="module")
def spoilt() -> Path:
    return KINDS.written()


def exercise(kernels: Path) -> None:
    """A text through either kernel, one direction and two, under orders in which each block comes first."""
    for model in MODELS:
        text = match_text_graph(read_onnx_model(model))
        expected = OnnxBackend("cpu", 1).load("text", Model(model)).run(FEEDS)["text"]
        for schedule in range(3):
            gpu = EmulatedDevice(checked=True, schedule=schedule, kernels=kernels, multiprocessors=6)
            found = RecurrentEncoder(text, gpu, 5).run(FEEDS)["text"]
            np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_kernels_as_they_are_pass_every_check() -> None:
    exercise(RECURRENT)


def test_without_a_mistake_they_pass_every_check(spoilt: Path) -> None:
    with KINDS.showing(spoilt, None):
        exercise(spoilt)


@pytest.mark.parametrize("mistake", KINDS.mistakes, ids=str)
def test_a_planted_mistake_is_found(spoilt: Path, mistake: planted.Mistake) -> None:
    with KINDS.showing(spoilt, mistake), pytest.raises(KernelFault, match=FAULT):
        exercise(spoilt)
