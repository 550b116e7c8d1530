"""What OpenVINO has compiled is kept: opened again without the bundle's graph, and only where it is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cir_infer import Engine
from cir_infer.bundle import Bundle
from cir_infer.extras import is_installed
from cir_infer.runtime.kept import graphs
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph, write_graph
from cir_infer.runtime.kept.graphs import Keeping
from cir_infer.runtime.kept.weights import Weight
from tests.bundles import write_tiny_bundle
from tests.runtime.kept.bundled import FEEDS, Bundled, kept

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)

from cir_infer.runtime.openvino import backend as backends
from cir_infer.runtime.openvino.backend import OpenVinoBackend


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    return tmp_path / "graphs"


def openvino() -> Keeping:
    return OpenVinoBackend(1)


@pytest.mark.parametrize("beside", [False, True], ids=["weights inside", "weights beside"])
def test_the_second_opening_reads_what_the_first_kept(folder: Path, beside: bool) -> None:
    bundled = Bundled(backend=openvino, beside=beside)
    assert bundled.answers()
    assert bundled.reads == 1
    assert [entry.name for entry in folder.iterdir()] == [kept(folder)[0].name]  # no scratch is left
    assert bundled.answers()
    assert bundled.answers(ReadAhead({"image": bundled.stored}, "openvino"))
    assert bundled.reads == 1


def test_other_versions_libraries_and_precisions_are_kept_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Bundled(backend=openvino).answers()
    assert Bundled().answers()
    monkeypatch.setattr(backends, "VERSION", "2099.1.0")
    assert Bundled(backend=openvino).answers()
    if "bfloat16" in _computed():
        bundled = Bundled(backend=lambda: OpenVinoBackend(1, "bfloat16"))
        assert bundled.answers()
        assert bundled.reads == 1
        assert len(kept(folder)) == 4
    else:
        assert len(kept(folder)) == 3


def _computed() -> list[str]:
    return ["bfloat16"] if OpenVinoBackend(1)._processor.computes_bfloat16 else []


def test_what_one_number_of_threads_made_another_opens(folder: Path) -> None:
    assert Bundled(backend=openvino).answers()
    several = Bundled(backend=lambda: OpenVinoBackend(2))
    assert several.answers()
    assert several.reads == 0
    assert len(kept(folder)) == 1


@pytest.mark.parametrize("damage", ["the file", "what was compiled", "what it says"])
def test_what_is_damaged_is_made_again(folder: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    bundled = Bundled(backend=openvino)
    assert bundled.answers()
    (file,) = kept(folder)
    whole = file.read_bytes()
    found = read_graph(file, 1 << 30)
    assert isinstance(found, GraphFile)
    ((name, compiled),) = found.weights
    if damage == "the file":
        file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "what was compiled":  # sealed, and no graph: by a version that failed
        nothing = Weight(name, backends._BYTES, (4096,), memoryview(bytes(4096)))
        write_graph(file, found.key, found.model, [nothing])
    else:
        same = Weight(name, backends._BYTES, compiled.shape, memoryview(compiled))
        write_graph(file, found.key, found.model.replace(b'"embedding"', b'"embeddings"'), [same])
    assert bundled.answers()
    assert "is made again" in caplog.text
    assert bundled.reads == 2
    assert bundled.answers()
    assert bundled.reads == 2


def test_a_graph_lives_as_long_as_what_it_reads(folder: Path) -> None:
    bundled = Bundled(backend=openvino)
    assert bundled.answers()
    found = read_graph(kept(folder)[0], 1 << 30)
    assert isinstance(found, GraphFile)
    graph = openvino().reopen("image", found)
    del found
    room = [np.full(1 << 20, 255, np.uint8) for _ in range(8)]  # whatever is free now is written over
    assert np.array_equal(graph.run(FEEDS)["embedding"], bundled.right)
    assert len(room) == 8


def test_a_bundle_opens_without_its_graphs(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "_LEAST", 0)
    monkeypatch.setattr(graphs.load_kept, "__defaults__", (None, 0))
    path = write_tiny_bundle(tmp_path / "tiny.cir")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    with Engine(path, "openvino") as engine:
        right = engine.encode_images([picture])
        texts = engine.encode_texts(["is red"])
    files = {file.name.partition("-")[0] for file in kept(folder)}
    assert files == set(Bundle(path).manifest.graphs)

    def read(self: Bundle, name: str) -> None:
        raise AssertionError(f"{name} is read")

    monkeypatch.setattr(Bundle, "graph", read)
    with Engine(path, "openvino") as engine:
        assert np.array_equal(engine.encode_images([picture]), right)
        assert np.array_equal(engine.encode_texts(["is red"]), texts)


def test_where_nothing_can_be_kept_it_opens_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "file"
    place.write_bytes(b"")
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(place))
    bundled = Bundled(backend=openvino)
    assert bundled.answers()
    assert "graphs are not kept" in caplog.text
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
