"""The recurrent kernels for a processor against ONNX Runtime and against float64.

`make neon-check` sets CIR_RECURRENT_RUNNER to the command that runs kernels/recurrent/case_runner.cpp.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer import Engine
from cir_infer.bundle import write_bundle
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import DeviceError
from cir_infer.processes.threads import Threads
from cir_infer.runtime.devices import open_graphs
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph, write_graph
from cir_infer.runtime.kept.names import graph_cache
from cir_infer.runtime.onnx import OnnxGraph
from cir_infer.runtime.recurrent import kept_text, processor
from cir_infer.runtime.recurrent.kept_text import RecurrentKernels
from cir_infer.runtime.recurrent.processor import ProcessorEncoder, instruction_sets
from cir_infer.runtime.recurrent.text_graph import RecurrentText, match_text_graph
from tests.bundles import manifest_of, members_of
from tests.gpu.recurrent_checks import expected_text, random_text
from tests.other_machine import CaseRunner, command
from tests.processes.forking import exit_code_of_fork
from tests.runtime.recurrent.graphs import recurrent_graph
from tests.runtime.recurrent.test_encoder import KINDS, UNFIT, on_cpu, texts

RUNNER = command("CIR_RECURRENT_RUNNER")
OTHER = ("other machine",) if RUNNER else ()
SETS = (*instruction_sets(), *OTHER)

Encode = Callable[[dict[str, npt.NDArray[np.int32]]], npt.NDArray[np.float32]]


@functools.cache
def runner() -> CaseRunner:
    return CaseRunner(RUNNER)


def encoder(model: bytes, instruction_set: str, threads: int = 2) -> Encode:
    return encoder_of(match_text_graph(read_onnx_model(model)), instruction_set, threads)


def encoder_of(text: RecurrentText, instruction_set: str, threads: int = 2) -> Encode:
    if instruction_set in OTHER:
        return functools.partial(on_other_machine, text)
    ours = ProcessorEncoder(text, threads, instruction_set)
    return lambda feeds: ours.run(feeds)["text"]


def on_other_machine(text: RecurrentText, feeds: dict[str, npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
    """The answer of kernels/recurrent/case_runner.cpp."""
    tokens, lengths = feeds["tokens"], feeds["lengths"]
    gates, projected = text.input_weights.shape[1], text.projection is not None
    sizes = (gates, text.directions, text.hidden, text.words.shape[1], len(text.words))
    head = np.array([*sizes, text.over_time, text.out, projected, *tokens.shape], "<i4")
    least = np.array([-1.0 if text.least_square is None else text.least_square], "<f4")
    arrays = (
        text.words,
        text.input_weights,
        text.recurrent_weights,
        text.input_bias,
        text.candidate_bias,
        text.projection,
        text.projection_bias,
    )
    floats = b"".join(array.astype("<f4").tobytes() for array in arrays if array is not None)
    case = head.tobytes() + least.tobytes() + floats + tokens.tobytes() + lengths.tobytes()
    found = runner().ask(case, 4 * len(tokens) * text.out)
    return np.frombuffer(found, "<f4").reshape(len(tokens), text.out)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_is_encoded_as_onnx_runtime_does(kind: str, instruction_set: str) -> None:
    model = recurrent_graph(**KINDS[kind])
    feeds = texts([*range(1, 21), 300, 2, 511])  # more steps and texts than go through a layer together
    found = encoder(model, instruction_set)(feeds)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, on_cpu(model, feeds), atol=2e-6)


@settings(max_examples=60)
@given(st.data())
def test_any_size(data: st.DataObject) -> None:
    draw = data.draw
    op, directions = draw(st.sampled_from(["GRU", "LSTM"])), draw(st.integers(1, 2))
    out, unit = draw(st.none() | st.integers(1, 300)), draw(st.booleans())
    model = recurrent_graph(
        op,
        directions,
        draw(st.integers(1, 70)),
        draw(st.integers(1, 40)),
        over_time=draw(st.booleans()) and (out is not None or unit),
        out=out,
        unit=unit,
        seed=draw(st.integers(0, 9)),
    )
    feeds = texts(draw(st.lists(st.integers(1, 12), min_size=1, max_size=40)))
    expected = on_cpu(model, feeds)
    for instruction_set in SETS:
        found = encoder(model, instruction_set, draw(st.integers(1, 4)))(feeds)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=6e-6)


@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("size", [1e-6, 1.0, 30.0])
@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_states_are_right_to_a_part_of_themselves(kind: str, size: float, instruction_set: str) -> None:
    """Tiny ones, which a division by the norm makes large; and gates that are all but open or shut."""
    text = random_text(kind, 2, 21, 8, over_time=False, out=None)
    text.words[:] *= size
    for biases in (text.input_bias, text.candidate_bias):
        if biases is not None:
            biases[:] = 0
    feeds = texts([1, 5, 9], len(text.words))
    found = encoder_of(text, instruction_set)(feeds)
    for row, length in enumerate(feeds["lengths"]):
        expected = expected_text(text, feeds["tokens"][row, :length])
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=4e-7 * np.abs(expected).max())


@pytest.mark.parametrize("instruction_set", SETS)
def test_a_text_is_the_same_bits_alone_and_among_others(instruction_set: str) -> None:
    model = recurrent_graph("LSTM", hidden=40, out=9, over_time=True)
    feeds = texts([1 + i % 13 for i in range(37)])
    ours = encoder(model, instruction_set, 4)
    every = ours(feeds)
    for row in (0, 12, 20, 36):
        alone = {name: value[row : row + 1] for name, value in feeds.items()}
        np.testing.assert_array_equal(ours(alone), every[row : row + 1])
    np.testing.assert_array_equal(encoder(model, instruction_set, 1)(feeds), every)


def test_tokens_after_a_text_do_not_count_and_negative_ones_count_from_the_end() -> None:
    ours = encoder(recurrent_graph(), instruction_sets()[0])
    feeds = texts([4])
    padded = {"tokens": np.pad(feeds["tokens"], [(0, 0), (0, 30)]), "lengths": feeds["lengths"]}
    np.testing.assert_array_equal(ours(padded), ours(feeds))
    strided = {"tokens": np.repeat(feeds["tokens"], 2, axis=1)[:, ::2], "lengths": feeds["lengths"]}
    np.testing.assert_array_equal(ours(strided), ours(feeds))
    negative = {"tokens": feeds["tokens"] - 11, "lengths": feeds["lengths"]}
    np.testing.assert_array_equal(ours(negative), ours(feeds))


def test_more_texts_than_the_kernels_take_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, feeds = encoder(recurrent_graph(), instruction_sets()[0]), texts([1 + i % 5 for i in range(23)])
    expected = ours(feeds)
    monkeypatch.setattr(processor, "_AT_ONCE", 4)
    np.testing.assert_array_equal(ours(feeds), expected)
    monkeypatch.setattr(processor, "_AT_ONCE", 23)
    np.testing.assert_array_equal(ours(feeds), expected)
    monkeypatch.undo()
    many = {"tokens": np.zeros((1_100_000, 1), np.int32), "lengths": np.ones(1_100_000, np.int32)}
    assert encoder(recurrent_graph(hidden=1, width=1), instruction_sets()[0])(many).shape == (1_100_000, 2)


def test_no_text_at_all() -> None:
    feeds = {"tokens": np.empty((0, 3), np.int32), "lengths": np.empty(0, np.int32)}
    assert encoder(recurrent_graph(out=4), instruction_sets()[0])(feeds).shape == (0, 4)


@pytest.mark.parametrize("instruction_set", SETS)
def test_weights_that_are_no_numbers_give_none(instruction_set: str) -> None:
    text = random_text("gru", 1, 9, 5, over_time=False, out=None)
    text.words[3] = np.nan
    feeds = {"tokens": np.array([[1, 3], [1, 2]], np.int32), "lengths": np.array([2, 2], np.int32)}
    found = encoder_of(text, instruction_set)(feeds)
    assert np.isnan(found[0]).any() and np.isfinite(found[1]).all()


@pytest.mark.parametrize(("change", "said"), UNFIT)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DeviceError, match=said):
        encoder(recurrent_graph(), instruction_sets()[0])({**texts([4]), **change})


@pytest.mark.parametrize(
    "change",
    [
        {"words": np.ones((11, 6), np.float32)},
        {"words": np.ones((0, 7), np.float32)},
        {"recurrent_weights": np.ones((2, 3, 13, 12), np.float32)},
        {"input_bias": np.ones((2, 3, 12), np.float32)},
        {"candidate_bias": None},
        {"candidate_bias": np.ones((1, 13), np.float32)},
        {"projection": np.ones((4, 26), np.float32)},
        {"projection": np.ones((4, 25), np.float32), "projection_bias": np.ones(4, np.float32)},
        {"projection": np.ones((4, 26), np.float32), "projection_bias": np.ones(3, np.float32)},
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(change: dict[str, Any]) -> None:
    """The native code reads no memory outside of them, whoever asks."""
    text = match_text_graph(read_onnx_model(recurrent_graph()))
    arguments = {
        name: getattr(text, name)
        for name in ("words", "input_weights", "recurrent_weights", "input_bias", "candidate_bias")
    }
    native = processor._native().Encoder
    more = {"over_time": False, "projection": None, "projection_bias": None, "least_square": -1.0}
    native(**arguments, **more, instruction_set="")
    with pytest.raises(ValueError, match="do not fit together"):
        native(**{**arguments, **more, **change}, instruction_set="")


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    text = match_text_graph(read_onnx_model(recurrent_graph()))
    with pytest.raises(DeviceError, match=r"cannot run sse17; it has .*baseline"):
        ProcessorEncoder(text, 1, "sse17")


def test_threads_share_one_and_a_forked_child_uses_it() -> None:
    model = recurrent_graph(hidden=64, width=50)
    ours = encoder(model, instruction_sets()[0], 2)
    every = [texts([1 + i, 40, 7], seed=i) for i in range(12)]
    expected = [ours(feeds) for feeds in every]
    threads = Threads(4)
    for task, value in zip([threads.submit(ours, feeds) for feeds in every], expected, strict=True):
        np.testing.assert_array_equal(task.result(), value)
    threads.close()
    assert exit_code_of_fork(lambda: int(not np.array_equal(ours(every[0]), expected[0]))) == 0


# ---- what runs on it


def test_the_processor_runs_recurrent_texts_by_it_and_others_by_onnx_runtime() -> None:
    ours = Model(recurrent_graph())
    other = Model(recurrent_graph(clip=3.0))
    for model, kind in ((ours, ProcessorEncoder), (other, OnnxGraph)):
        opened = open_graphs({"text": model, "compose": model}, "cpu", 1)
        assert isinstance(opened.graphs["text"], kind)
        assert isinstance(opened.graphs["compose"], OnnxGraph)


def test_lowered_graphs_stay_where_they_were_judged() -> None:
    graph = read_onnx_model(recurrent_graph())
    assert kept_text._all_float32(graph)
    graph.constants["embed"] = graph.constants["embed"].astype(np.float16)
    assert not kept_text._all_float32(graph)


def test_where_the_module_is_missing_onnx_runtime_takes_over_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise DeviceError("the compiled text encoder cannot be loaded")

    monkeypatch.setattr(processor, "_native", missing)
    with caplog.at_level(logging.WARNING):
        assert RecurrentKernels(1).load(Model(recurrent_graph())) is None
    assert "the text graph runs on ONNX Runtime: the compiled text encoder" in caplog.text


@pytest.mark.parametrize("kind", ["bigru", "lstm, linear layer", "bigru, maximum over time"])
def test_what_is_kept_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    given = RecurrentKernels(1).load(Model(recurrent_graph(**KINDS[kind])))
    assert given is not None
    encoder, form = given
    write_graph(tmp_path / "kept", {}, *form)
    found = read_graph(tmp_path / "kept", 1 << 20)
    assert isinstance(found, GraphFile)
    again = RecurrentKernels(1).reopen(found)
    assert again is not None
    feeds = texts([3, 9, 1])
    np.testing.assert_array_equal(again.run(feeds)["text"], encoder.run(feeds)["text"])
    assert RecurrentKernels(1).reopen(found._replace(model=recurrent_graph())) is None


def test_an_engine_says_so_and_opens_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "kept"))
    large = {"text.onnx": recurrent_graph("GRU", 2, hidden=3, width=40_000, words=15)}
    path = tmp_path / "bigru.cir"
    write_bundle(path, manifest_of("artemis"), {**members_of("artemis"), **large})
    asked = ["red", "red and blue"]
    with Engine(path, "cpu") as engine:
        assert isinstance(engine._graphs["text"], ProcessorEncoder)
        assert engine.describe()["text_encoder"] == f"cir-infer, {instruction_sets()[0]}"
        expected = engine.encode_texts(asked)
    kept = graph_cache()
    assert kept is not None and len([*kept.glob("text-*")]) == 1
    monkeypatch.setattr(RecurrentKernels, "load", lambda *_: pytest.fail("it was kept"))
    with Engine(path, "cpu") as engine:
        np.testing.assert_array_equal(engine.encode_texts(asked), expected)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gru", "over_time": False},
        {"kind": "gru", "over_time": False, "least_square": None, "more": 1},
        [],
        None,
    ],
)
def test_what_was_kept_of_something_else_is_made_again(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "kept"))
    large = {"text.onnx": recurrent_graph("GRU", 2, hidden=3, width=40_000, words=15)}
    path = tmp_path / "bigru.cir"
    write_bundle(path, manifest_of("artemis"), {**members_of("artemis"), **large})
    with Engine(path, "cpu") as engine:
        expected = engine.encode_texts(["red"])
    folder = graph_cache()
    assert folder is not None
    (kept,) = folder.glob("text-*")
    found = read_graph(kept, 1 << 30)
    assert isinstance(found, GraphFile)
    write_graph(kept, found.key, kept_text._MARK + json.dumps(change).encode(), [])
    with caplog.at_level(logging.WARNING), Engine(path, "cpu") as engine:
        np.testing.assert_array_equal(engine.encode_texts(["red"]), expected)
    assert "is made again" in caplog.text
