"""Optimised graphs that are kept: used where they are right, and never where they are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from cir_infer.runtime.kept import graph_file, names
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph, write_graph
from cir_infer.runtime.kept.graphs import load_kept
from cir_infer.runtime.kept.names import graph_cache
from cir_infer.runtime.kept.weights import with_weights, without_weights
from cir_infer.runtime.onnx import OnnxBackend
from tests.runtime.kept.bundled import Bundled, encoder, kept
from tests.runtime.owners import belongs_to_another


def test_the_second_opening_reads_what_the_first_kept(folder: Path) -> None:
    bundled = Bundled()
    assert bundled.answers()
    assert bundled.reads == 1
    assert len(kept(folder)) == 1
    assert [entry.name for entry in folder.iterdir()] == [kept(folder)[0].name]  # no scratch is left
    assert bundled.answers()
    assert bundled.reads == 1


def test_graphs_of_other_content_limits_and_versions_are_kept_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Bundled().answers()
    assert Bundled(seed=1).answers()
    assert Bundled(checked_for=[224]).answers()
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    assert Bundled().answers()
    monkeypatch.setattr(names, "_processor", lambda: ["another"])
    assert Bundled().answers()
    assert len(kept(folder)) == 5


def test_another_graph_in_its_place_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = Bundled(), Bundled(seed=1)
    assert one.answers()
    (mine,) = kept(folder)
    assert other.answers()
    (others,) = set(kept(folder)) - {mine}
    mine.write_bytes(others.read_bytes())
    assert one.answers()
    assert "it was made of something else" in caplog.text
    assert one.reads == 2


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "of another format": lambda data: b"ONNX" + data[4:],
    "digest": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "header": lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:],
    "weights": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "cut short": lambda data: data[:-1],
    "cut in the header": lambda data: data[:50],
    "longer": lambda data: data + b"x",
    "much longer": lambda data: data + bytes(70 << 20),
}


@pytest.mark.parametrize("ahead", [False, True], ids=["when asked for", "read ahead"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_made_again(
    folder: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes], ahead: bool
) -> None:
    bundled = Bundled()
    assert bundled.answers()
    (file,) = kept(folder)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert bundled.answers(ReadAhead({"image": bundled.stored}) if ahead else None)
    assert "is made again" in caplog.text
    assert bundled.reads == 2
    assert file.read_bytes() == whole
    assert bundled.answers()
    assert bundled.reads == 2


def test_no_chunk_of_the_weights_goes_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large weights are read and held against their digests in chunks, by two threads."""
    monkeypatch.setattr(graph_file, "_CHUNK", 1000)
    bundled = Bundled()
    assert bundled.answers()
    assert bundled.answers()
    assert bundled.reads == 1
    (file,) = kept(folder)
    whole = file.read_bytes()
    weights = 4 * (32 * 64 + 64 * 48)
    for place in (*range(len(whole) - weights, len(whole), 1000), len(whole) - 1):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read_graph(file, len(whole)) == "it is damaged or was cut short", place
    reads = bundled.reads
    assert bundled.answers()
    assert bundled.reads == reads + 1


def test_what_is_kept_does_not_name_files(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sealed and of the right key, by somebody who may write here: a graph cannot pull in another file."""
    bundled = Bundled()
    assert bundled.answers()
    (file,) = kept(folder)
    found = read_graph(file, 1 << 30)
    assert isinstance(found, GraphFile)
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(32 * 64 * 4))
    model = onnx.load_from_string(found.model)
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.data_location = "more", TensorProto.FLOAT, TensorProto.EXTERNAL
    tensor.dims.extend((32, 64))
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", str(secret)
    _, weights = without_weights(with_weights(found.model, []).data)
    write_graph(file, found.key, model.SerializeToString(), weights)
    assert bundled.answers()
    assert "keeps values in another file" in caplog.text


@pytest.mark.parametrize("missing", ["first", "all"])
def test_a_kept_graph_without_its_weights_is_refused(
    folder: Path, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    bundled = Bundled()
    assert bundled.answers()
    (file,) = kept(folder)
    found = read_graph(file, 1 << 30)
    assert isinstance(found, GraphFile)
    _, weights = without_weights(bundled.model)
    write_graph(file, found.key, found.model, weights[1:] if missing == "first" else [])
    assert bundled.answers()
    assert "is made again" in caplog.text


def test_a_graph_that_others_may_write_to_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundled = Bundled()
    assert bundled.answers()
    kept(folder)[0].chmod(0o666)
    assert bundled.answers()
    assert "other users may write to it" in caplog.text
    assert bundled.reads == 2


@pytest.mark.parametrize("whole", [True, False], ids=["the folder", "a graph"])
def test_what_belongs_to_another_user_is_not_used(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    bundled = Bundled()
    assert bundled.answers()
    belongs_to_another(folder if whole else kept(folder)[0], monkeypatch)
    assert bundled.answers()
    assert "it belongs to another user (number " in caplog.text
    assert bundled.reads == 2


def test_nothing_is_kept_where_it_is_off_or_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = Bundled()
    load_kept(OnnxBackend("cpu", 1), "image", bundled.stored)
    monkeypatch.setenv("CIR_GRAPH_CACHE", "off")
    assert graph_cache() is None
    assert bundled.answers()
    assert not folder.exists()


def test_weights_are_taken_out_and_named() -> None:
    model = encoder()
    bare, weights = without_weights(model)
    assert [weight.name for weight in weights] == ["first", "second"]
    assert [init.name for init in onnx.load_from_string(bare).graph.initializer] == ["small"]
    arrays = [(weight.name, np.frombuffer(weight.data, "<f4").reshape(weight.shape)) for weight in weights]
    whole = onnx.load_from_string(with_weights(bare, arrays).data).graph.initializer
    assert {init.name: tuple(init.dims) for init in whole} == {
        "small": (48,),
        "first": (32, 64),
        "second": (64, 48),
    }
    same = {init.name: numpy_helper.to_array(init) for init in onnx.load_from_string(model).graph.initializer}
    assert all(np.array_equal(same[name], array) for name, array in arrays)


def test_weights_that_are_read_where_they_lie_are_not_copied(folder: Path) -> None:
    bundled = Bundled(beside=True)
    assert bundled.answers()
    assert not folder.exists()
