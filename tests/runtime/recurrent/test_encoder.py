"""The persistent kernel against ONNX Runtime on the CPU, in an emulation that looks at every access."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import DeviceError
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.recurrent.arguments import ARRIVAL_BYTES
from cir_infer.runtime.recurrent.encoder import Placed, RecurrentEncoder, place
from cir_infer.runtime.recurrent.text_graph import NoKernelError, match_text_graph
from tests.emulation.emulated import RECURRENT, EmulatedDevice
from tests.processes.forking import exit_code_of_fork, refused_in_child
from tests.runtime.recurrent.graphs import recurrent_graph

MOST = 9

KINDS: dict[str, dict[str, Any]] = {
    "bigru": {},
    "gru, plain state": {"directions": 1, "unit": False, "hidden": 17},
    "bilstm": {"op": "LSTM", "hidden": 5},
    "lstm, linear layer": {"op": "LSTM", "directions": 1, "hidden": 18, "out": 10},
    "lstm, maximum over time": {"op": "LSTM", "directions": 1, "over_time": True, "out": 6, "unit": False},
    "bigru, maximum over time": {"over_time": True, "hidden": 6},
    "one hidden unit": {"hidden": 1, "width": 1},
    "wider than a warp's first turn": {"directions": 1, "hidden": 150, "width": 131, "out": 3},
}


def device(**options: Any) -> EmulatedDevice:
    return EmulatedDevice(kernels=RECURRENT, **{"multiprocessors": 4, **options})


def encoder(model: bytes, gpu: EmulatedDevice) -> RecurrentEncoder:
    return RecurrentEncoder(match_text_graph(read_onnx_model(model)), gpu, MOST)


def texts(lengths: Any, words: int = 11, seed: int = 0) -> dict[str, npt.NDArray[np.int32]]:
    lengths = np.asarray(lengths, np.int32)
    tokens = np.random.default_rng(seed).integers(0, words, (len(lengths), int(lengths.max())))
    return {"tokens": tokens.astype(np.int32), "lengths": lengths}


def on_cpu(model: bytes, feeds: Any) -> npt.NDArray[np.float32]:
    return OnnxBackend("cpu", 1).load("text", Model(model)).run(feeds)["text"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_length_is_encoded_as_onnx_runtime_does(kind: str) -> None:
    model = recurrent_graph(**KINDS[kind])
    feeds = texts(range(1, MOST + 1))
    expected = on_cpu(model, feeds)
    for checked, schedule, multiprocessors in ((False, 0, 8), (True, 0, 4), (True, 1, 2), (True, 2, 6)):
        gpu = device(checked=checked, schedule=schedule, multiprocessors=multiprocessors)
        found = encoder(model, gpu).run(feeds)["text"]
        assert found.dtype == np.float32 and len(gpu.launched) == MOST
        np.testing.assert_allclose(found, expected, atol=2e-6)


@settings(max_examples=25)
@given(st.data())
def test_any_size_on_any_gpu(data: st.DataObject) -> None:
    draw = data.draw
    op, directions = draw(st.sampled_from(["GRU", "LSTM"])), draw(st.integers(1, 2))
    out = draw(st.none() | st.integers(1, 20))
    unit = draw(st.booleans())
    model = recurrent_graph(
        op,
        directions,
        draw(st.integers(1, 40)),
        draw(st.integers(1, 40)),
        over_time=draw(st.booleans()) and (out is not None or unit),
        out=out,
        unit=unit,
        seed=draw(st.integers(0, 9)),
    )
    gpu = device(
        multiprocessors=draw(st.integers(directions, 9)),
        shared_bytes=draw(st.sampled_from([2_048, 4_096, 65_536])),
        schedule=draw(st.integers(0, 3)),
        filling=draw(st.sampled_from([0x00, 0xFF])),
    )
    feeds = texts(draw(st.lists(st.integers(1, MOST), min_size=1, max_size=4)))
    np.testing.assert_allclose(encoder(model, gpu).run(feeds)["text"], on_cpu(model, feeds), atol=4e-6)


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_the_answer_does_not_depend_on_the_order_of_threads_and_blocks(op: str) -> None:
    model = recurrent_graph(op, hidden=22, out=9)
    feeds = texts([MOST, 1, 4])
    answers = {
        encoder(model, device(schedule=schedule, filling=filling)).run(feeds)["text"].tobytes()
        for schedule in range(4)
        for filling in (0x00, 0xFF)
    }
    assert len(answers) == 1


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_weights_may_lie_in_shared_memory_or_not(op: str) -> None:
    """All, some, none: the same products in the same order, so the same bits."""
    model = recurrent_graph(op, directions=1, hidden=40, unit=False)
    feeds = texts([6])
    found, resident = [], []
    for shared_bytes in (65_536, 5_000, 1_000):
        ours = encoder(model, device(multiprocessors=3, shared_bytes=shared_bytes, checked=True))
        found.append(ours.run(feeds)["text"])
        resident.append(ours.placed.resident_rows)
        assert ours.placed.shared_bytes <= shared_bytes
    assert resident[0] >= ours.placed.block_units * {"GRU": 3, "LSTM": 4}[op]
    assert resident[0] > resident[1] > resident[2] == 0
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_a_block_may_have_more_units_than_threads(op: str) -> None:
    model = recurrent_graph(op, directions=1, hidden=300, width=4, over_time=True)
    feeds = texts([3])
    ours = encoder(model, device(multiprocessors=1, checked=True))
    assert ours.placed.block_units == 300
    np.testing.assert_allclose(ours.run(feeds)["text"], on_cpu(model, feeds), atol=2e-6)


def test_many_texts_and_the_same_texts_again() -> None:
    model = recurrent_graph()
    ours = encoder(model, device())
    feeds = texts([1 + i % MOST for i in range(37)])
    first = ours.run(feeds)["text"]
    np.testing.assert_allclose(first, on_cpu(model, feeds), atol=2e-6)
    np.testing.assert_array_equal(ours.run(feeds)["text"], first)
    alone = {name: value[20:21] for name, value in feeds.items()}
    np.testing.assert_array_equal(ours.run(alone)["text"], first[20:21])


def test_tokens_after_a_text_do_not_count_and_negative_ones_count_from_the_end() -> None:
    model = recurrent_graph()
    ours = encoder(model, device())
    feeds = texts([4])
    padded = {"tokens": np.pad(feeds["tokens"], [(0, 0), (0, 30)]), "lengths": feeds["lengths"]}
    np.testing.assert_array_equal(ours.run(padded)["text"], ours.run(feeds)["text"])
    negative = {"tokens": feeds["tokens"] - 11, "lengths": feeds["lengths"]}
    np.testing.assert_array_equal(ours.run(negative)["text"], ours.run(feeds)["text"])


def test_no_text_at_all() -> None:
    feeds = {"tokens": np.empty((0, 3), np.int32), "lengths": np.empty(0, np.int32)}
    assert encoder(recurrent_graph(), device()).run(feeds)["text"].shape == (0, 26)


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"tokens": np.full((1, 4), 11, np.int32)}, "tokens from 11 to 11; its vocabulary has 11"),
    ({"tokens": np.full((1, 4), -12, np.int32)}, "tokens from -12"),
    ({"lengths": np.array([0], np.int32)}, "lengths from 0 to 0; expected 1 to 4"),
    ({"lengths": np.array([5], np.int32)}, "lengths from 5 to 5; expected 1 to 4"),
    ({"tokens": np.ones((1, 4), np.int64)}, r"not {'tokens': 'int64 \(1, 4\)'"),
    ({"lengths": np.array([4, 4], np.int32)}, "takes int32 tokens"),
    ({"more": np.array([4])}, "takes int32 tokens"),
]
"""Inputs that fit no encoder of 11 words, in place of those of a text of 4."""

LONG = {"tokens": np.ones((1, 12), np.int32), "lengths": np.array([12], np.int32)}


@pytest.mark.parametrize(("change", "said"), [*UNFIT, (LONG, "expected 1 to 9")])
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        encoder(recurrent_graph(), device()).run({**texts([4]), **change})


class Silent:
    """Blocks that never come."""

    def most_blocks(self, shared_bytes: int) -> int:
        return 4

    def launch(self, grid: Any, shared_bytes: int, arguments: ctypes.Structure, stream: object) -> None:
        ctypes.memset(arguments.arrivals, 1, ARRIVAL_BYTES)


def test_a_kernel_that_gives_up_is_an_error_and_the_next_text_is_right() -> None:
    model = recurrent_graph()
    ours = encoder(model, device())
    kernel, ours._kernel = ours._kernel, Silent()
    with pytest.raises(DeviceError, match="its blocks waited ten seconds for one another"):
        ours.run(texts([4]))
    ours._kernel = kernel
    np.testing.assert_allclose(ours.run(texts([4]))["text"], on_cpu(model, texts([4])), atol=2e-6)


def test_a_forked_child_is_refused_also_where_another_thread_was_at_it() -> None:
    ours = encoder(recurrent_graph(out=5), device())
    with ours._lock:  # as that thread has it
        assert exit_code_of_fork(lambda: refused_in_child(lambda: ours.run(texts([3])))) == 0
    assert len(ours.run(texts([3]))["text"]) == 1


def test_memory_is_taken_once_and_given_back() -> None:
    taken = []

    class Counting(EmulatedDevice):
        def allocate(self, nbytes: int) -> Any:
            memory = super().allocate(nbytes)
            taken.append(memory)
            return memory

    ours = encoder(recurrent_graph(out=5), Counting(kernels=RECURRENT))
    before = len(taken)
    for lengths in ([1], [MOST] * 20):
        ours.run(texts(lengths))
    assert len(taken) == before
    del ours
    assert all(memory._free for memory in taken)


# ---- where the layer lies on a GPU


class Roomy:
    """A kernel of which one block fits a multiprocessor."""

    version = "none"

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks

    def most_blocks(self, shared_bytes: int) -> int:
        return self._blocks

    def launch(self, *arguments: Any) -> None:
        raise AssertionError


def test_a_layer_is_spread_over_the_gpu() -> None:
    # ARTEMIS' BiGRU on an H200 (132 x 227 KiB), a T4 (40 x 64 KiB) and an Orin Nano (8 x 163 KiB).
    assert place(3, 2, 256, Roomy(132), 132, 232_448) == Placed(66, 4, 12, 12 * 1024 + 2048 + 80)
    assert place(3, 2, 256, Roomy(40), 40, 65_536) == Placed(20, 13, 40, 40 * 1024 + 2048 + 272)
    nano = place(3, 2, 256, Roomy(8), 8, 166_912)
    assert (nano.blocks, nano.block_units, nano.resident_rows) == (4, 64, 156)
    # A layer that is small takes few blocks; a GPU that holds fewer than it should gets fewer.
    assert place(4, 1, 10, Roomy(132), 132, 232_448).blocks == 5
    assert place(3, 2, 256, Roomy(50), 132, 232_448).blocks == 25


@pytest.mark.parametrize(
    ("hidden", "blocks", "shared_bytes", "said"),
    [
        (4096, 40, 16_384, "4096 hidden units need .* bytes of shared memory"),
        (256, 1, 65_536, "no room for 2"),
    ],
)
def test_a_gpu_that_is_too_small_is_refused(hidden: int, blocks: int, shared_bytes: int, said: str) -> None:
    with pytest.raises(NoKernelError, match=said):
        place(3, 2, hidden, Roomy(blocks), 40, shared_bytes)
