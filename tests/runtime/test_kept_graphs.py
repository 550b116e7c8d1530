"""Optimised graphs that are kept: used where they are right, never where they are not, and never missed."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError
from cir_infer.processes.threads import Task
from cir_infer.runtime.kept import graph_file, graphs, names
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph, write_graph
from cir_infer.runtime.kept.graphs import load_kept
from cir_infer.runtime.kept.memory import spare_memory
from cir_infer.runtime.kept.names import StoredGraph, graph_cache
from cir_infer.runtime.kept.weights import Weight, with_weights, without_weights
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.tensorrt.plan_cache import cache_folder

FEEDS = {"image": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}


def encoder(seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.standard_normal((32, 64)).astype(np.float32), "first"),
        numpy_helper.from_array(random.standard_normal((64, 48)).astype(np.float32), "second"),
        numpy_helper.from_array(random.standard_normal(48).astype(np.float32), "small"),
    ]
    nodes = [
        helper.make_node("MatMul", ["image", "first"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "second"], ["c"]),
        helper.make_node("Add", ["c", "small"], ["embedding"]),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 32])]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 48])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


class Bundled:
    """A graph in a bundle, which counts how often it is read."""

    def __init__(self, seed: int = 0, checked_for: Any = None) -> None:
        self.model, self.reads = encoder(seed), 0
        digest = hashlib.sha256(self.model).hexdigest()
        self.stored = StoredGraph(digest, len(self.model), checked_for, self.read)
        self.right = OnnxBackend("cpu", 1).load("image", Model(self.model)).run(FEEDS)["embedding"]

    def read(self) -> Model:
        self.reads += 1
        return Model(self.model)

    def answers(self, ahead: ReadAhead | None = None) -> bool:
        """Open it, whatever is kept; its numbers are the bundle's, to the last bit."""
        found = self.stored.found if ahead is None else partial(ahead.take, "image")
        stored = self.stored._replace(found=found)
        graph = load_kept(OnnxBackend("cpu", 1), "image", stored, least=0)
        return np.array_equal(graph.run(FEEDS)["embedding"], self.right)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    return tmp_path / "graphs"


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.graph"))


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


def test_folders_that_cannot_be_used_cost_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundled = Bundled()
    (tmp_path / "file").write_text("no folder")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for number, place in enumerate((tmp_path / "file", shared), start=1):
        monkeypatch.setenv("CIR_GRAPH_CACHE", str(place))
        assert bundled.answers()
        assert bundled.reads == number
        assert "is not kept" in caplog.text
        caplog.clear()
    assert not list(shared.iterdir())


def test_a_user_without_a_home_folder_loses_time_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bundled = Bundled()
    for variable in ("CIR_GRAPH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv("CIR_GRAPH_CACHE", raising=False)
        monkeypatch.setenv(variable, "~no-such-user-of-this-machine/cache")
        assert bundled.answers()
        assert "no home folder" in caplog.text
        caplog.clear()
    with pytest.raises(DeviceError, match=r"no home folder.*set CIR_PLAN_CACHE"):
        cache_folder()


def test_a_graph_that_others_may_write_to_is_not_used(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundled = Bundled()
    assert bundled.answers()
    kept(folder)[0].chmod(0o666)
    assert bundled.answers()
    assert "others may write to it" in caplog.text
    assert bundled.reads == 2


def test_a_full_disk_costs_time_only(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    bundled = Bundled()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        assert bundled.answers()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "is not kept" in caplog.text
    assert not list(folder.iterdir())


def test_memory_that_is_short_costs_time_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(graphs, "_MEMORY", 1 << 50)
    assert Bundled().answers()
    assert "MiB of memory are left" in caplog.text
    assert not kept(folder)


def test_spare_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "group"
    assert spare_memory(meminfo, group) is None
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:  3000 kB\n")
    assert spare_memory(meminfo, group) == 3000 << 10
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500000\n")
    assert spare_memory(meminfo, group) == 3000 << 10
    (group / "memory.max").write_text("1000000\n")
    assert spare_memory(meminfo, group) == 500_000
    (group / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    assert spare_memory(meminfo, group) == 700_000
    meminfo.write_text("MemAvailable:\n")
    assert spare_memory(meminfo, group) == 700_000
    assert spare_memory() is not None or not Path("/proc/meminfo").exists()


def test_what_was_used_longest_ago_makes_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, newer = Bundled(), Bundled(seed=1)
    assert oldest.answers()
    (first,) = kept(folder)
    assert newer.answers()
    (second,) = set(kept(folder)) - {first}
    os.utime(first, (1e9, 1e9))
    assert oldest.answers()  # used now
    os.utime(second, (1e9, 1e9))
    monkeypatch.setattr(graphs, "_MOST_OF_ALL", first.stat().st_size + 2 * len(oldest.model))
    assert Bundled(seed=2).answers()
    assert first.exists()
    assert not second.exists()


def test_what_processes_left_behind_goes_and_what_is_the_users_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that a user names may hold anything."""
    old = (1e9, 1e9)
    places = [folder / name for name in (".optimised-killed", ".optimised-running", ".mine")]
    for place in places:
        place.mkdir(parents=True, mode=0o700)
        (place / "weights").write_bytes(b"w")
    folder.chmod(0o700)
    mine = folder / "my-work.graph"
    mine.write_bytes(b"m")
    for path in (places[0], places[2], mine):
        os.utime(path, old)
    monkeypatch.setattr(graphs, "_MOST_OF_ALL", 0)
    assert Bundled().answers()
    assert [place.exists() for place in (*places, mine)] == [False, True, True, True]


@pytest.mark.parametrize("place", ["\udcff\udcfe", "x" * 300])
def test_paths_that_nothing_can_write_to_cost_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / place))
    assert Bundled().answers()
    assert "is not kept" in caplog.text


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
