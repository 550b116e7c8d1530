"""What is read before anybody knows whether it will be used: right or not used, and never in the way."""

from __future__ import annotations

import os
import resource
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cir_infer.processes.threads import Task
from cir_infer.runtime.kept import graph_file
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph, write_graph
from cir_infer.runtime.kept.weights import Weight, with_weights
from cir_infer.runtime.onnx import OnnxBackend
from tests.runtime.kept.bundled import Bundled, kept


def test_what_is_read_ahead_is_used_where_it_is_the_right_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime's version is not known then: the file that was used last is the guess."""
    bundled = Bundled()
    graph = {"image": bundled.stored}
    assert bundled.answers(ReadAhead(graph))  # nothing is kept yet
    (mine,) = kept(folder)
    ahead = ReadAhead(graph)
    assert ahead.take("image", mine, 1 << 30).key  # type: ignore[union-attr]
    ahead = ReadAhead(graph)
    whole = mine.read_bytes()
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    assert bundled.answers(ahead)  # it was another version's
    assert bundled.reads == 2
    (others,) = set(kept(folder)) - {mine}
    os.utime(mine, (1e9, 1e9))
    assert bundled.answers(ReadAhead(graph))
    assert bundled.reads == 2
    assert not caplog.records
    others.write_bytes(whole)  # another version's under this one's name
    assert bundled.answers(ReadAhead(graph))
    assert "it was made of something else" in caplog.text
    assert bundled.reads == 3


def test_nothing_is_read_ahead_in_a_folder_that_others_may_write_to(folder: Path) -> None:
    bundled = Bundled()
    assert bundled.answers()
    (file,) = kept(folder)
    folder.chmod(0o777)
    ahead = ReadAhead({"image": bundled.stored})
    file.unlink()
    assert ahead.take("image", file, 1 << 30) is None


def test_what_is_not_read_yet_is_not_held_against_its_digest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread comes to a file's digests while another, that could not wait, still reads that file."""
    monkeypatch.setattr(graph_file, "_CHUNK", 1000)
    assert Bundled().answers()
    (kept_file,) = kept(folder)
    whole = kept_file.read_bytes()
    for place in (None, len(whole) - 4 * (32 * 64 + 64 * 48)):  # of the first chunk
        if place is not None:
            kept_file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        file = graph_file._opened(kept_file, 1 << 30)
        assert isinstance(file, graph_file._Open)
        filled, checked = Task(file.fill), Task(file.check)
        checked.run()
        result = graph_file.Reading(file, filled, checked).result()
        assert isinstance(result, GraphFile) if place is None else result == "it is damaged or was cut short"


def test_what_is_read_ahead_without_memory_for_it_costs_time_only(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing asks for it yet, so that an error would come out of the engine."""
    bundled = Bundled()
    assert bundled.answers()
    (file,) = kept(folder)
    found = read_graph(file, 1 << 30)
    assert isinstance(found, GraphFile)
    # More than an arena of the C library holds: one may be there already.
    large = Weight("large", TensorProto.FLOAT, (18 << 20,), memoryview(bytes(72 << 20)))
    bundled.stored = bundled.stored._replace(size=large.data.nbytes)
    write_graph(file, found.key, found.model, [large])
    del large
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), before[1]))
    try:
        ahead = ReadAhead({"image": bundled.stored})
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert bundled.answers(ahead)
    assert "there is no memory for it" in caplog.text
    assert bundled.reads == 2


def test_a_reading_that_is_left_before_it_begins_leaves_no_open_file(folder: Path) -> None:
    assert Bundled().answers()
    file = graph_file._opened(kept(folder)[0], 1 << 30)
    assert isinstance(file, graph_file._Open)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        graph_file.Reading(file, Task(file.fill), Task(file.check)).cancel()
        del file
    assert not said


def test_weights_are_read_where_they_lie() -> None:
    """A copy of them would take their size in memory again, and half of the time of opening."""
    bias = np.zeros((1, 2048), np.float32)
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2048])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 2048])]
    node = helper.make_node("Add", ["image", "bias"], ["embedding"])
    graph = helper.make_graph([node], "adds", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    whole = with_weights(model.SerializeToString(), [("bias", bias)])
    adds = OnnxBackend("cpu", 1).load_optimised("image", whole)
    feeds = {"image": np.zeros((1, 2048), np.float32)}
    assert not adds.run(feeds)["embedding"].any()
    bias[:] = 3
    assert (adds.run(feeds)["embedding"] == 3).all()
