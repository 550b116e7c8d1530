"""Layers have names of their own, which `cir-export --layers` lists and `--keep-float32` takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from cir_export.commands.export import main
from cir_export.precision import PrecisionError
from cir_export.precision.blame import LayerError
from cir_export.precision.fidelity import Fidelity
from cir_export.precision.graphs import lower_graphs
from cir_export.precision.layers import layers_of, name_nodes
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import FeatureInput
from tests.bundles import DIM, GraphBuilder, manifest_of, members_of
from tests.export.precision.bundles import convolutional, wordy


def perceptron(path: Path, alike: bool) -> Bundle:
    """Three products whose weights the exporter has renamed; the biases of two are equal, and stored once."""
    random, g = np.random.default_rng(3), GraphBuilder()
    g.constant("m.norm.bias", np.zeros(DIM))
    g.constant("m.last.bias", random.normal(size=DIM))
    value = g.add("Add", ["image", "m.norm.bias"], "normed")
    for number in range(3):
        g.constant(f"val_{number}", random.normal(size=(DIM, DIM)))
        product = g.add("MatMul", [value, f"val_{number}"], f"product_{number}")
        bias = "m.norm.bias" if number < 2 and alike else "m.last.bias"
        value = g.add("Add", [product, bias], "embedding" if number == 2 else f"sum_{number}")
    made = g.model({"image": ("f32", ["n", DIM])}, {"embedding": ("f32", ["n", DIM])})
    members = {**members_of("features"), "image.onnx": made}
    write_bundle(path, replace(manifest_of("features"), image=FeatureInput(DIM)), members)
    return Bundle(path)


def images() -> list[np.ndarray]:
    return [np.random.default_rng(0).normal(size=(4, DIM)).astype(np.float32)]


def test_a_bias_that_others_have_too_names_no_layer(tmp_path: Path) -> None:
    """One layer's name kept all of them in float32, and was another's."""
    bundle = perceptron(tmp_path / "alike.cir", alike=True)
    graph = lower_graphs(bundle, "float16", "cpu", (), images)[0]
    first, second, last = graph.layers
    assert last == "m.last" and {first, second}.isdisjoint({"m.norm", "m.last"})
    assert first != second and first.startswith("image.") and second.startswith("image.")
    for kept in graph.layers:
        assert lower_graphs(bundle, "float16", "cpu", (kept,), images)[0].kept == {kept}
    errors = [LayerError("image", layer, 0.9 + 0.01 * number) for number, layer in enumerate(graph.layers)]
    refused = PrecisionError("int8", ["too much"], Fidelity(4, 4, "images", 0.9, 0.9), None, errors)
    assert "--keep-float32 image m.last)" in str(refused), "of the image graph these are all without a name"


def test_one_layer_at_work_twice_has_one_name(tmp_path: Path) -> None:
    """Its weight and its bias are read by both products, and one name keeps both."""
    g = GraphBuilder()
    g.constant("val_0", np.ones((DIM, DIM)))
    g.constant("m.both.bias", np.ones(DIM))
    value = "image"
    for number in range(2):
        product = g.add("MatMul", [value, "val_0"], f"product_{number}")
        value = g.add("Add", [product, "m.both.bias"], f"sum_{number}")
    model = onnx.load_from_string(g.model({"image": ("f32", ["n", DIM])}, {value: ("f32", ["n", DIM])}))
    name_nodes(model)
    (first, second) = layers_of(model).values()
    assert first == "m.both" and second.startswith("m.both (")


def test_the_layers_of_a_bundle_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = wordy(tmp_path / "wordy.cir")
    assert main([str(source), "--precision", "int8", "--layers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        ["m.first", "image"],
        ["m.second", "image"],
        ["m.third", "image"],
        ["m.project", "image"],
        ["t.first", "text"],
        ["t.second", "text"],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wordy.cir"]
    assert main([str(source), "--precision", "float16", "--layers", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["layers"]
    sizes = {one["name"]: one["nbytes"] for one in listed}
    assert sizes["m.first"] == 4 * (12 * 3 * 9 + 12)
    # Each name is one that the conversion takes.
    for name in sizes:
        graphs = lower_graphs(Bundle(source), "float16", "cpu", (name,), list)
        assert [layer for graph in graphs for layer in graph.layers if layer in graph.kept] == [name]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers"], "--layers belongs to --precision float16 or int8"),
        (["--precision", "bfloat16", "--layers"], "--layers belongs to --precision float16 or int8"),
        (["--precision", "int8", "--keep-float32", "m.fifth", "--calibrate", "."], "(all: --layers)"),
    ],
)
def test_what_it_belongs_to_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    source = convolutional(tmp_path / "small.cir")
    if "." in arguments:
        from tests.export.precision.bundles import photographs

        arguments = [str(photographs(tmp_path / "photos")) if one == "." else one for one in arguments]
    assert main([str(source), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_layers_are_listed_of_bundles_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "model.pt"), "--precision", "int8", "--layers"]) == 2
    assert "--layers takes a float32 bundle; export MODEL without --precision" in capsys.readouterr().err
