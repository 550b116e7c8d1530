"""Weights beside the graphs: the same answers, every part checked, nothing opened by name."""

from __future__ import annotations

import functools
import gc
import hashlib
import importlib.util
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto
from torch import Tensor

from cir_export.commands.export import main
from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel
from cir_export.precision import FORMS, Calibration, Lowering, convert_bundle, samples_for
from cir_export.precision.blame import layer_errors
from cir_export.precision.graphs import lower_graphs
from cir_export.precision.held import Held
from cir_export.precision.writing import write_with
from cir_export.weights import WeightsFile, key_of
from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.model import ALIGNMENT, Model, places_of, read_model, write_model
from cir_infer.bundle.writing import FilePart
from cir_infer.errors import BundleError, ExportError
from tests.export.precision.bundles import SIDE, convolutional
from tests.export.test_export import trained
from tests.export.test_in_parts import samples

TEXTS = ["the small red cube", "is blue"]
LARGE = 256
"""Bytes of a weight that counts as large here."""


class Exported(NamedTuple):
    """One model's weights inside its graphs, and beside them; the model, and the weights that it had."""

    pair: tuple[Path, Path]
    model: TrainedModel
    weights: dict[str, weakref.ref[Tensor]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("beside")
    model = trained()
    weights = {name: weakref.ref(value) for name, value in model.model.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cir_export.export.WeightsFile", functools.partial(WeightsFile, large=LARGE))
        beside, inner = folder / "beside.cir", folder / "inside.cir"
        # Held against PyTorch there.
        export_bundle(model, beside, samples(model), large=0, keep_model=False)
    bundle = Bundle(beside)
    write_with(bundle, inner, bundle.manifest, {}, large=1 << 40)
    return Exported((inner, beside), model, weights)


@pytest.fixture
def pair(exported: Exported) -> tuple[Path, Path]:
    return exported.pair


def values_of(model: Model) -> dict[str, bytes]:
    tensors = onnx.load_from_string(model.whole()).graph.initializer
    return {tensor.name: onnx.numpy_helper.to_array(tensor).tobytes() for tensor in tensors}


def answers(path: Path, device: str = "cpu") -> list[np.ndarray]:
    batch = np.random.default_rng(3).integers(0, 256, (3, 24, 24, 3), np.uint8)
    with Engine(path, device=device, threads=1) as engine:
        return [
            engine.encode_prepared(batch),
            engine.encode_texts(TEXTS),
            engine.encode_in_parts(batch).parts,
        ]


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


# ---- altered bundles


def rewritten(source: Path, target: Path, change: Callable[[ModelProto, bytearray], None]) -> Path:
    """A bundle whose image graph and weights were changed, and sealed again as an attacker would."""
    bundle = Bundle(source)
    graph, data = ModelProto.FromString(bundle.read("image.onnx")), bytearray(bundle.read(WEIGHTS_NAME))
    change(graph, data)
    weights = target.with_name("changed.bin")
    weights.write_bytes(bytes(data))
    members = bundle.contents(name for name in bundle.manifest.members if name != WEIGHTS_NAME)
    members |= {"image.onnx": graph.SerializeToString(), WEIGHTS_NAME: FilePart.of(weights)}
    write_bundle(target, bundle.manifest, members)
    return target


def entry(graph: ModelProto, key: str, value: str) -> None:
    """Let the first weight beside the graph say something else."""
    tensor = next(t for t in graph.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    for said in tensor.external_data:
        if said.key == key:
            said.value = value


def both(graph: ModelProto, data: bytearray) -> None:
    next(t for t in graph.graph.initializer if t.external_data).raw_data = b"1234"


def shape(graph: ModelProto, data: bytearray) -> None:
    next(t for t in graph.graph.initializer if t.external_data).dims.append(1 << 40)


def twice(graph: ModelProto, data: bytearray) -> None:
    graph.graph.initializer.append(next(t for t in graph.graph.initializer if t.external_data))


def flipped(graph: ModelProto, data: bytearray) -> None:
    data[places_of(graph.SerializeToString())[0].offset] ^= 1


def first(graph: ModelProto) -> TensorProto:
    return next(t for t in graph.graph.initializer if t.external_data)


def nowhere(graph: ModelProto, data: bytearray) -> None:
    del first(graph).external_data[:]


def endless(graph: ModelProto, data: bytearray) -> None:
    """A shape without an element, and one whose product takes minutes."""
    graph.graph.initializer.append(first(graph))
    tensor = graph.graph.initializer[-1]
    tensor.name = "more"
    tensor.dims[:] = [0, 1 << 62, 1 << 62]
    for said in tensor.external_data:
        if said.key in ("length", "checksum"):
            said.value = "0" if said.key == "length" else hashlib.sha256(b"").hexdigest()


def many_axes(graph: ModelProto, data: bytearray) -> None:
    first(graph).dims.extend([1] * 100)


def overlapping(graph: ModelProto, data: bytearray) -> None:
    """A small graph that would have the same bytes read many times."""
    length = max(place.length for place in places_of(graph.SerializeToString())) // ALIGNMENT * ALIGNMENT
    for number in range(2):
        begin = number * ALIGNMENT
        tensor = TensorProto(name=f"more{number}", data_type=TensorProto.UINT8, dims=[length - begin])
        tensor.data_location = TensorProto.EXTERNAL
        digest = hashlib.sha256(data[begin:length]).hexdigest()
        said = {"location": WEIGHTS_NAME, "offset": begin, "length": length - begin, "checksum": digest}
        for key, value in said.items():
            tensor.external_data.add(key=key, value=str(value))
        graph.graph.initializer.append(tensor)


def hidden(graph: ModelProto, data: bytearray) -> None:
    tensor = TensorProto(name="c", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=WEIGHTS_NAME)
    graph.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], value=tensor))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda graph, data: entry(graph, "location", "/etc/passwd"), "weights cannot be found"),
        (lambda graph, data: entry(graph, "location", "../weights.bin"), "weights cannot be found"),
        (lambda graph, data: entry(graph, "offset", "-64"), "weights cannot be found"),
        (lambda graph, data: entry(graph, "offset", "1"), "weights cannot be found"),
        (lambda graph, data: entry(graph, "offset", str(1 << 40)), "lies beyond"),
        (lambda graph, data: entry(graph, "length", "4"), "weights cannot be found"),
        (lambda graph, data: entry(graph, "checksum", "0" * 64), "sha256"),
        (lambda graph, data: entry(graph, "checksum", "x"), "weights cannot be found"),
        (lambda graph, data: data.__delitem__(slice(100, None)), "lies beyond|sha256"),
        (both, "weights cannot be found"),
        (shape, "weights cannot be found"),
        (nowhere, "weights cannot be found"),
        (endless, "no array has"),
        (many_axes, "weights cannot be found"),
        (overlapping, "partly where another"),
        (twice, "one name"),
        (flipped, "sha256"),
        (hidden, "another file"),
    ],
)
def test_what_a_graph_says_of_its_weights_is_not_believed(
    pair: tuple[Path, Path], tmp_path: Path, change: Callable[[ModelProto, bytearray], None], said: str
) -> None:
    path = rewritten(pair[1], tmp_path / "changed.cir", change)
    with pytest.raises(BundleError, match=said) as caught:
        Engine(path, device="cpu")
    assert len(str(caught.value)) < 500


def test_a_bundle_without_the_field_may_not_keep_weights_elsewhere(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = Bundle(pair[1])
    members = bundle.contents(name for name in bundle.manifest.members if name != WEIGHTS_NAME)
    with pytest.raises(BundleError, match="members are"):
        write_bundle(tmp_path / "none.cir", bundle.manifest, members)
    write_bundle(tmp_path / "none.cir", replace(bundle.manifest, weights=None), members)
    with pytest.raises(BundleError, match="another file"):
        Engine(tmp_path / "none.cir", device="cpu")


def test_damage_of_the_file_of_weights_is_found(pair: tuple[Path, Path], tmp_path: Path) -> None:
    data = bytearray(pair[1].read_bytes())
    place = places_of(Bundle(pair[1]).read("image.onnx"))[0]
    data[Bundle(pair[1])._part(WEIGHTS_NAME).begin + place.offset] ^= 4
    path = tmp_path / "damaged.cir"
    path.write_bytes(data)
    for use in (Bundle(path).verify, lambda: Engine(path, device="cpu")):
        with pytest.raises(BundleError, match="sha256"):
            use()
    with pytest.raises(BundleError, match="altered or damaged"):
        write_bundle(tmp_path / "copy.cir", Bundle(path).manifest, Bundle(path).contents())
    assert not (tmp_path / "copy.cir").exists()


def test_what_is_beyond_a_message_is_not_put_into_one() -> None:
    class Huge(dict[str, np.ndarray]):
        """Weights that only say how large they are."""

        def values(self) -> list[np.ndarray]:  # type: ignore[override]
            return [np.broadcast_to(np.float32(0), (1 << 10, 1 << 20))]

    model = Model(b"", Huge(w=np.zeros(1, np.float32)))
    assert model.size == 1 << 32
    with pytest.raises(BundleError, match=r"4\.3 GB"):
        model.whole()


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
