"""Blocks that wait for one another: the checked machine notices every lost barrier, fence, count and wait."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.text_graph import match_text_graph
from tests.emulation.emulated import RECURRENT, EmulatedDevice, KernelFault
from tests.runtime.recurrent.graphs import recurrent_graph

BARRIER = re.compile(r"^\s*device::barrier\(\);")
FAULT = (
    r"a race|nothing wrote|outside of memory|as if it could not change|no fence, barrier and atomic|"
    r"others that never come"
)
MODELS = (
    recurrent_graph("GRU", hidden=30, out=21),
    recurrent_graph("LSTM", directions=1, hidden=21, over_time=True, width=5),
)
FEEDS = {"tokens": np.array([[3, 1, 4, 1, 5]], np.int32), "lengths": np.array([5], np.int32)}

OTHERS = {
    "a wait that does not wait": ("!device::wait_for(arrival(args, which), count)", "false"),
    "a wait for one step less": ("direction, step * blocks", "direction, (step - 1) * blocks"),
    "a wait for one block less": ("direction, step * blocks", "direction, step * blocks - 1"),
    "a wait for one block more": ("direction, step * blocks", "direction, step * blocks + 1"),
    "a wait for the other direction": (
        "kFirstDirection + direction, step * blocks",
        "kFirstDirection + (direction ^ 1) * (args.directions - 1), step * blocks",
    ),
    "pooled states of too few blocks": ("kPooled, all_blocks)", "kPooled, all_blocks - 1)"),
    "a text of too few blocks": ("last, all_blocks)", "last, all_blocks - 1)"),
    "an arrival that is not counted": (
        "kFirstDirection + direction);",
        "kFirstDirection + direction + 2 * (device::block_x() == 0));",
    ),
    "a count without atomics": (
        "device::add(arrival(args, which), 1);",
        "*arrival(args, which) = *arrival(args, which) + 1;",
    ),
    "states of other blocks from a cache": ("device::load_fresh(from + i)", "from[i]"),
    "no fence before the count": ("        device::release();\n", ""),
    "a fence before the barrier": (
        "    device::barrier();\n    if (device::thread() == 0) {\n        device::release();\n",
        "    if (device::thread() == 0) device::release();\n    device::barrier();\n"
        "    if (device::thread() == 0) {\n",
    ),
    "a fence after the count": (
        "        device::release();\n        device::add(arrival(args, which), 1);\n",
        "        device::add(arrival(args, which), 1);\n        device::release();\n",
    ),
    "a vector too many": (
        "v < vectors; v += 32) {\n                const",
        "v <= vectors; v += 32) {\n                const",
    ),
    "a state too many": ("i < count ? device::load_fresh", "i <= count ? device::load_fresh"),
    "a value too many": (
        "i < args.out; i += kThreads) args.text",
        "i <= args.out; i += kThreads) args.text",
    ),
    "a word too many": ("step + i < args.steps ? step + i", "step + i <= args.steps ? step + i"),
}


def barriers() -> list[tuple[str, int]]:
    return [
        (path.name, number)
        for path in sorted(RECURRENT.glob("*.cuh"))
        for number, line in enumerate(path.read_text().split("\n"))
        if BARRIER.match(line)
    ]


def exercise(kernels: Path) -> None:
    """A text through either kernel, one direction and two, under orders in which each block comes first."""
    for model in MODELS:
        text = match_text_graph(read_onnx_model(model))
        expected = OnnxBackend("cpu", 1).load("text", Model(model)).run(FEEDS)["text"]
        for schedule in range(3):
            gpu = EmulatedDevice(checked=True, schedule=schedule, kernels=kernels, multiprocessors=6)
            found = RecurrentEncoder(text, gpu, 5).run(FEEDS)["text"]
            np.testing.assert_allclose(found, expected, atol=2e-6)


def planted(folder: Path, name: str, text: str) -> Path:
    for path in RECURRENT.glob("*.cu*"):
        shutil.copy(path, folder)
    (folder / name).write_text(text)
    return folder


def test_the_kernels_as_they_are_pass_every_check() -> None:
    exercise(RECURRENT)


@pytest.mark.parametrize(("name", "number"), barriers())
def test_a_missing_barrier_is_found(tmp_path: Path, name: str, number: int) -> None:
    lines = (RECURRENT / name).read_text().split("\n")
    lines[number] = ""
    with pytest.raises(KernelFault, match=FAULT):
        exercise(planted(tmp_path, name, "\n".join(lines)))


@pytest.mark.parametrize("mistake", OTHERS)
def test_a_planted_mistake_is_found(tmp_path: Path, mistake: str) -> None:
    right, wrong = OTHERS[mistake]
    text = (RECURRENT / "encode.cuh").read_text()
    assert text.count(right) == 1, "the kernels have changed; plant this mistake anew"
    with pytest.raises(KernelFault, match=FAULT):
        exercise(planted(tmp_path, "encode.cuh", text.replace(right, wrong)))
