"""What a graph says of weights beside it is checked, every part of them too; nothing is opened by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import WEIGHTS_NAME
from cir_infer.bundle.model import ALIGNMENT, Model, places_of
from cir_infer.bundle.writing import FilePart
from cir_infer.errors import BundleError


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
