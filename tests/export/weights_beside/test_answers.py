"""Weights beside the graphs: the same answers, each weight once, and wherever a bundle goes they go too."""

from __future__ import annotations

import functools
import gc
import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from cir_export.commands.export import main
from cir_export.precision.graphs import lower_graphs
from cir_export.precision.writing import write_with
from cir_export.weights import WeightsFile
from cir_infer import Engine
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.model import ALIGNMENT, Model, places_of, read_model, write_model
from tests.export.weights_beside.bundles import LARGE, Exported, answers, values_of


def test_weights_of_a_model_that_is_given_up_are_not_held_beside_the_runtimes(exported: Exported) -> None:
    gc.collect()
    assert [name for name, weight in exported.weights.items() if weight() is not None] == []
    assert {value.device.type for value in exported.model.model.parameters()} == {"meta"}


def test_pages_that_are_released_come_back(pair: tuple[Path, Path]) -> None:
    graph = Bundle(pair[1]).graph("image")
    before = {name: values.tobytes() for name, values in graph.weights.items()}
    assert graph.mapped is not None and before
    graph.release_pages()
    assert {name: values.tobytes() for name, values in graph.weights.items()} == before
    Bundle(pair[0]).graph("image").release_pages()  # there are none


def test_the_answers_are_those_of_a_bundle_that_holds_them_inside(pair: tuple[Path, Path]) -> None:
    inner, outer = Bundle(pair[0]), Bundle(pair[1])
    assert inner.manifest.weights is None and WEIGHTS_NAME not in inner.manifest.members
    assert outer.manifest.weights == WEIGHTS_NAME and outer.manifest.version == 2
    for found, expected in zip(answers(pair[1]), answers(pair[0]), strict=True):
        np.testing.assert_array_equal(found, expected)
    for name in (*outer.manifest.graphs, "explain"):
        graph = outer.graph(name)
        places = places_of(graph.data)
        assert all(place.offset % ALIGNMENT == 0 and place.length >= LARGE for place in places)
        assert [place.name for place in places] == list(graph.weights)
        assert values_of(graph) == values_of(inner.graph(name))
    assert outer.manifest.members["image.onnx"].bytes < inner.manifest.members["image.onnx"].bytes
    outer.verify()


@pytest.mark.parametrize("most", [1 << 31, 0], ids=["in memory", "by files"])
def test_openvino_takes_them_too(pair: tuple[Path, Path], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    monkeypatch.setattr("cir_infer.runtime.openvino.api.MOST_INSIDE", most)
    for found, expected in zip(answers(pair[1], "openvino"), answers(pair[0]), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_weights_of_two_graphs_lie_there_once(tmp_path: Path) -> None:
    values = np.arange(512, dtype=np.float32)
    graphs = [ModelProto(), ModelProto()]
    for number, graph in enumerate(graphs):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, f"w{number}"))
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values + number + 1, f"v{number}"))
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values[:3], "small"))
    file = WeightsFile(tmp_path / WEIGHTS_NAME, LARGE)
    file.take(graphs)
    assert file.path.stat().st_size == 3 * values.nbytes
    first, second = (places_of(graph.SerializeToString()) for graph in graphs)
    assert [place.name for place in first] == ["w0", "v0"] and first[0].offset == second[0].offset
    assert graphs[0].graph.initializer[2].raw_data == values[:3].tobytes()


def test_what_shares_a_place_counts_once(tmp_path: Path) -> None:
    """Limits grow with what a bundle holds, not with how often a graph names it."""
    values = np.arange(512, dtype=np.float32)
    graph = ModelProto()
    for number in range(3):
        graph.graph.initializer.append(onnx.numpy_helper.from_array(values, f"w{number}"))
    file = WeightsFile(tmp_path / WEIGHTS_NAME, LARGE)
    file.take([graph])
    (tmp_path / "graph.onnx").write_bytes(graph.SerializeToString())
    model = read_model(tmp_path / "graph.onnx")
    assert model.size - model.stored == 2 * values.nbytes
    assert values_of(model) == dict.fromkeys(("w0", "w1", "w2"), values.tobytes())


def test_a_bundle_is_restated_copied_and_lowered_with_them(pair: tuple[Path, Path], tmp_path: Path) -> None:
    said = tmp_path / "said.cir"
    assert main([str(pair[1]), "--domain", "toys", "-o", str(said), "--json"]) == 0
    restated = Bundle(said)
    assert restated.manifest.fingerprint == Bundle(pair[1]).manifest.fingerprint
    assert restated.manifest.members[WEIGHTS_NAME] == Bundle(pair[1]).manifest.members[WEIGHTS_NAME]
    lowered = {}
    for name, path in zip(("inside", "beside"), pair, strict=True):
        graphs = lower_graphs(Bundle(path), "float16", "cpu", (), lambda: ())
        models = {Bundle(path).manifest.graphs[graph.name]: graph.model for graph in graphs}
        manifest = replace(Bundle(path).manifest, precision="float16", explain=None)
        lowered[name] = tmp_path / f"{name}.cir"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "cir_export.precision.writing.WeightsFile", functools.partial(WeightsFile, large=LARGE)
            )
            write_with(Bundle(path), lowered[name], manifest, models, 0 if name == "beside" else 1 << 40)
    assert Bundle(lowered["beside"]).manifest.weights and not Bundle(lowered["inside"]).manifest.weights
    batch = np.random.default_rng(3).integers(0, 256, (3, 24, 24, 3), np.uint8)
    rows = [Engine(path, device="cpu", threads=1).encode_prepared(batch) for path in lowered.values()]
    np.testing.assert_array_equal(*rows)


def test_a_graph_is_handed_to_other_programs_with_its_weights(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    graph = Bundle(pair[1]).graph("image")
    write_model(graph, tmp_path / "image.onnx")
    again = read_model(tmp_path / "image.onnx")
    assert again.data == graph.data and again.weights.keys() == graph.weights.keys()
    for name, values in graph.weights.items():
        np.testing.assert_array_equal(again.weights[name], values)
    read = Model(onnx.load(tmp_path / "image.onnx").SerializeToString())
    assert values_of(read) == values_of(graph), "ONNX reads them"
    assert read_model(_written(tmp_path / "plain.onnx", graph.whole())).weights == {}


def _written(path: Path, data: bytes) -> Path:
    write_model(Model(data), path)
    return path
