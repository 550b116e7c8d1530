"""Graphs whose weights lie beside them in a lower precision: the same as of those that hold them."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from cir_export.precision import FORMS, Calibration, Lowering, convert_bundle, samples_for
from cir_export.precision.blame import layer_errors
from cir_export.precision.graphs import lower_graphs
from cir_export.precision.held import Held
from cir_export.precision.writing import write_with
from cir_export.weights import WeightsFile, key_of
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.model import Model, places_of
from cir_infer.errors import ExportError
from tests.export.precision.bundles import SIDE, convolutional
from tests.export.weights_beside.bundles import LARGE, answers, values_of


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
def test_lowered_without_its_weights_a_graph_is_the_same(pair: tuple[Path, Path], precision: str) -> None:
    """What is left out and put back is what the converter makes of a graph that holds it."""
    made = []
    batches = [np.random.default_rng(3).integers(0, 256, (3, 24, 24, 3), np.uint8)]
    for path in pair:
        bundle = Bundle(path)
        held = Held(bundle)
        for graph in lower_graphs(bundle, precision, "cpu", (), lambda: batches):  # type: ignore[arg-type]
            left_out = sum(key_of(tensor) is not None for tensor in graph.model.graph.initializer)
            assert (left_out > 0) == (path == pair[1])
            models = [graph.model, graph.judged, graph.alone(graph.layers[0])]
            models += [] if graph.rest is None else [graph.rest]
            read = {name for node in models[2].graph.node for name in node.input}
            assert held.runnable(models[2]).weights.keys() <= read
            made.append([held.filled(model).SerializeToString(deterministic=True) for model in models])
            whole = values_of(Model(made[-1][1]))
            run = held.runnable(graph.judged).weights
            assert (len(run) > 0) == (path == pair[1] and precision != "bfloat16")
            assert {name: values.tobytes() for name, values in run.items()}.items() <= whole.items()
    half = len(made) // 2
    assert half >= 1 and made[:half] == made[half:]


def test_layers_are_blamed_alike(pair: tuple[Path, Path]) -> None:
    """What runs one layer alone is handed the weights that its graph leaves out."""
    found = []
    for path in pair:
        bundle = Bundle(path)
        graphs = lower_graphs(bundle, "float16", "cpu", (), lambda: ())
        found.append(layer_errors(bundle, graphs, samples_for(bundle, None, None)))
    assert found[0] == found[1] and all(0.99 < error.cosine_worst < 1 for error in found[0])


def test_weights_that_do_not_fit_into_a_graph_become_float16_or_int8(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cir_export.precision.held.MOST_INSIDE", 1 << 10)
    monkeypatch.setattr(
        "cir_export.precision.writing.WeightsFile", functools.partial(WeightsFile, large=LARGE)
    )
    bundle, target = Bundle(pair[1]), tmp_path / "half.cir"
    drawn = samples_for(bundle, None, None)
    report = convert_bundle(bundle.path, target, Lowering("float16"), drawn)
    assert report.fidelity.cosine_worst is not None and report.fidelity.cosine_worst > 0.9999
    half = Bundle(target)
    assert half.manifest.precision == "float16" and half.manifest.weights == WEIGHTS_NAME
    assert {place.kind for place in places_of(half.read("image.onnx"))} >= {TensorProto.FLOAT16}
    assert half.manifest.members[WEIGHTS_NAME].bytes < bundle.manifest.members[WEIGHTS_NAME].bytes
    np.testing.assert_allclose(answers(target)[0], answers(pair[1])[0], atol=5e-3)
    calibration = Calibration(drawn.images, drawn.images, "drawn")
    for form in FORMS:
        whole = tmp_path / f"int8-{form}.cir"
        convert_bundle(bundle.path, whole, Lowering("int8", form), drawn, calibration)
        lowered = Bundle(whole)
        assert lowered.manifest.precision == "int8" and lowered.manifest.weights == WEIGHTS_NAME
        kinds = {place.kind for place in places_of(lowered.read("image.onnx"))}
        assert (TensorProto.INT8 in kinds) is (form == "cpu")
        np.testing.assert_allclose(answers(whole)[0], answers(pair[1])[0], atol=0.05)
    stored = lower_graphs(bundle, "bfloat16", "cpu", (), lambda: ())
    models = {bundle.manifest.graphs[graph.name]: graph.model for graph in stored}
    manifest = replace(bundle.manifest, precision="bfloat16", explain=None)
    with pytest.raises(ExportError, match=r"GB of weights itself.*Convert to float16"):
        write_with(bundle, tmp_path / "stored.cir", manifest, models)
    assert not (tmp_path / "stored.cir").exists()


def test_what_two_graphs_share_stays_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference graph that has the image graph's tower, each calibrated for itself."""
    monkeypatch.setattr(
        "cir_export.precision.writing.WeightsFile", functools.partial(WeightsFile, large=LARGE)
    )
    inside, beside = Bundle(convolutional(tmp_path / "inside.cir")), tmp_path / "beside.cir"
    shared = {**inside.manifest.graphs, "reference": "reference.onnx"}
    image = onnx.load_from_string(inside.read("image.onnx"))
    reference = ModelProto()
    reference.CopyFrom(image)
    _rename_output(reference, "embedding", "reference")
    members = {**inside.contents(inside.manifest.members), "reference.onnx": reference.SerializeToString()}
    both = tmp_path / "both.cir"
    write_bundle(both, replace(inside.manifest, graphs=shared), members)
    bundle = Bundle(both)
    models = {file: Held(bundle).graph(name) for name, file in shared.items()}
    write_with(bundle, beside, bundle.manifest, models, large=0)
    sizes = {}
    batches = [np.random.default_rng(n).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8) for n in range(2)]
    for path in (both, beside):
        bundle = Bundle(path)
        graphs = lower_graphs(bundle, "int8", "cpu", (), lambda: batches)
        assert [graph.name for graph in graphs] == ["image", "reference"]
        models = {bundle.manifest.graphs[graph.name]: graph.model for graph in graphs}
        write_with(bundle, tmp_path / "int8.cir", replace(bundle.manifest, precision="int8"), models)
        lowered = Bundle(tmp_path / "int8.cir")
        assert lowered.manifest.weights == bundle.manifest.weights
        places = [
            {place.name: place for place in places_of(lowered.read(shared[name]))}
            for name in ("image", "reference")
        ]
        assert [place.offset for place in places[0].values()] == [
            place.offset for place in places[1].values()
        ]
        sizes[path] = sum(place.length for place in places[0].values())
    assert sizes == {both: 0, beside: pytest.approx(2 * 12 * 12 * 9 + 12 * 3 * 9, abs=400)}


def _rename_output(model: ModelProto, old: str, new: str) -> None:
    model.graph.output[0].name = new
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
