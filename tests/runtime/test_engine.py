"""The engine on real, tiny graphs: batches, order, devices, graphs that are not what they should be."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, load_model_from_string
from onnx.external_data_helper import set_external_data

from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import BundleError, DeviceError, ImageError, UsageError
from cir_infer.gpu.driver import missing_gpu
from cir_infer.runtime import devices
from tests.bundles import (
    DIM,
    FEATURES,
    HIDDEN,
    cosine_graph,
    image_graph,
    manifest_of,
    members_of,
    write_tiny_bundle,
)


def test_images_in_any_batching_keep_their_order(engine: Engine, pictures: list[Path]) -> None:
    one_by_one = np.concatenate([engine.encode_images([path]) for path in pictures])
    assert one_by_one.shape == (len(pictures), DIM)
    assert one_by_one.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(one_by_one, axis=1), 1, atol=1e-5)
    for size in (1, 3, 32, 100):
        np.testing.assert_allclose(engine.encode_images(pictures, size), one_by_one, atol=1e-6)
    np.testing.assert_allclose(engine.encode_images(iter(pictures), 7), one_by_one, atol=1e-6)
    assert engine.encode_images([]).shape == (0, DIM)


def test_images_are_read_one_batch_ahead_and_no_further(engine: Engine, pictures: list[Path]) -> None:
    taken = 0

    def reading() -> Iterator[Path | bytes]:
        nonlocal taken
        for taken, path in enumerate(pictures):
            yield b"broken" if taken == 1 else path

    with pytest.raises(ImageError, match="image 1: the image of 6 bytes"):
        engine.encode_images(reading(), batch_size=4)
    assert taken == 7


def test_one_image_is_not_a_list(engine: Engine, pictures: list[Path]) -> None:
    for image in (pictures[0], str(pictures[0]), pictures[0].read_bytes()):
        with pytest.raises(UsageError, match="list of images"):
            engine.encode_images(image)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="list of images"):
        engine.encode_images(np.zeros((8, 8, 3), np.uint8))
    assert engine.encode_images(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, DIM)


def test_texts_in_any_batching(engine: Engine) -> None:
    texts = ["is red", ["is longer", "and blue"], "more", "is a more green square and more and more"]
    one_by_one = np.concatenate([engine.encode_texts([text]) for text in texts])
    assert one_by_one.shape == (4, HIDDEN)
    for size in (1, 2, 32):
        np.testing.assert_allclose(engine.encode_texts(texts, size), one_by_one, atol=1e-6)
    assert engine.encode_texts([]).shape == (0, HIDDEN)
    assert engine.encode_read([]).shape == (0, HIDDEN)
    with pytest.raises(UsageError, match="list of texts"):
        engine.encode_texts("is red")


def test_padding_is_read_as_text_only_where_asked_for(bundle: Path) -> None:
    engine = Engine(bundle, device="cpu", threads=1)
    texts = ["is red", "is a more green square and more and more"]
    alone = engine.encode_texts(texts[:1])
    np.testing.assert_allclose(engine.encode_texts(texts)[:1], alone, atol=1e-6)
    with pytest.raises(UsageError, match=r"not trained to read the padding.*export its checkpoint again"):
        engine.encode_texts(texts, pad_to_batch=True)
    engine.manifest.provenance["authors_read_padding"] = True  # as the exporter says of naver/artemis' LSTM
    padded = engine.encode_texts(texts, pad_to_batch=True)
    assert np.abs(padded[:1] - alone).max() > 1e-3
    np.testing.assert_allclose(padded[1:], engine.encode_texts(texts[1:]), atol=1e-6)
    np.testing.assert_allclose(engine.encode_texts(texts, 1, pad_to_batch=True)[:1], alone, atol=1e-6)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None])
def test_senseless_batch_sizes(engine: Engine, pictures: list[Path], size: object) -> None:
    with pytest.raises(UsageError, match="batch_size"):
        engine.encode_images(pictures, size)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch_size"):
        engine.encode_texts(["is red"], size)  # type: ignore[arg-type]


def test_compose(engine: Engine, pictures: list[Path]) -> None:
    references, texts = engine.encode_references(pictures[:3]), engine.encode_texts(["is red"] * 3)
    terms = engine.compose(references, texts)
    assert terms.names == ("implicit_similarity", "explicit_matching")
    assert terms.numerators.shape == (3, 2, DIM)
    assert terms.weights is not None
    with pytest.raises(UsageError, match="one for each"):
        engine.compose(references[:2], texts)
    with pytest.raises(UsageError, match="needs a text"):
        engine.compose(references, None)
    with pytest.raises(UsageError, match="needs a reference"):
        engine.compose(None, texts)
    with pytest.raises(UsageError, match=r"reference is float32 \(3, 3\); expected float32 \(n, 8\)"):
        engine.compose(references[:, :3], texts)
    with pytest.raises(UsageError, match="reference is"):
        engine.compose("a.jpg", texts)  # type: ignore[arg-type]


def test_kinds_of_systems(tmp_path: Path, pictures: list[Path]) -> None:
    def opened(system: str) -> Engine:
        return Engine(write_tiny_bundle(tmp_path / f"{system}.cir", system), device="cpu")

    separate = opened("separate")
    assert not separate.row_is_reference
    assert separate.encode_references(pictures[:2]).shape == (2, 5)
    assert separate.encode_images(pictures[:2]).shape == (2, DIM)
    cosine = opened("cosine")
    assert (
        cosine.compose(cosine.encode_references(pictures[:2]), cosine.encode_texts(["red", "blue"])).weights
        is None
    )
    features = opened("features")
    rows = features.encode_images(np.eye(FEATURES, dtype=np.float32)[:5])
    assert rows.shape == (5, DIM)
    with pytest.raises(ImageError, match="12 numbers"):
        features.encode_images(pictures[:1])
    assert not opened("text-only").needs_reference
    assert not opened("image-only").needs_text


def test_it_tells_all(engine: Engine) -> None:
    told = engine.describe()
    assert json.loads(json.dumps(told)) == told
    assert told["device"] == "cpu"
    assert told["backend"]["provider"] == "CPUExecutionProvider"
    assert told["fingerprint"] == engine.fingerprint
    assert told["terms"] == ["implicit_similarity", "explicit_matching"]


def test_an_opened_bundle_will_do(bundle: Path) -> None:
    assert Engine(Bundle(bundle), device="cpu").dimension == DIM


def test_threads_share_an_engine(engine: Engine, pictures: list[Path]) -> None:
    expected = engine.encode_images(pictures)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: engine.encode_images(pictures, 5), range(16)):
            np.testing.assert_allclose(rows, expected, atol=1e-6)


# ---- devices


def test_unknown_device_and_threads(bundle: Path) -> None:
    with pytest.raises(UsageError, match="abacus"):
        Engine(bundle, device="abacus")
    for threads in (0, -1, 1.5, True, 10**9):
        with pytest.raises(UsageError, match="threads"):
            Engine(bundle, device="cpu", threads=threads)  # type: ignore[arg-type]


@pytest.mark.skipif(missing_gpu() is None, reason="needs a machine without a GPU")
def test_without_a_gpu_one_asked_for_is_refused_and_auto_says_what_it_took(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for device in ("cuda", "tensorrt"):
        with pytest.raises(DeviceError, match=r"NVIDIA.*use device="):
            Engine(bundle, device=device)
    with caplog.at_level(logging.INFO, "cir_infer"):
        assert Engine(bundle, device="auto").describe()["device"] == "cpu"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "taking the CPU" in caplog.text


def test_an_unused_gpu_deserves_a_warning(
    bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "missing_gpu", lambda: None)
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime could really use the GPU")
    with pytest.raises(DeviceError, match="onnxruntime-gpu"):
        Engine(bundle, device="cuda")
    with caplog.at_level(logging.INFO, "cir_infer"):
        assert Engine(bundle, device="auto").describe()["device"] == "cpu"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_broken_onnxruntime_is_told(bundle: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from cir_infer import CirError, Engine\n"
        "try: Engine(sys.argv[1], device='cpu')\n"
        "except CirError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program, bundle], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("DeviceError ONNX Runtime cannot be imported")


# ---- graphs that are not what they should be


def with_members(path: Path, system: str = "artemis", **members: bytes) -> Path:
    named = {name.replace("_", "."): data for name, data in members.items()}
    write_bundle(path, manifest_of(system), {**members_of(system), **named})
    return path


def graph_of(inputs: dict[str, object], outputs: dict[str, object], dtype: int = TensorProto.FLOAT) -> bytes:
    infos = [
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in tensors.items()]
        for tensors in (inputs, outputs)
    ]
    node = helper.make_node("Identity", [next(iter(inputs))], [next(iter(outputs))])
    graph = helper.make_graph([node], "odd", *infos)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"image_onnx": b"not a graph"}, "cannot load the image graph"),
        ({"image_onnx": image_graph(dim=DIM + 1)}, r"expected float32 \(n, 8\)"),
        ({"image_onnx": image_graph("vector")}, "output 'vector'"),
        ({"image_onnx": image_graph(features=True)}, "expected uint8"),
        ({"compose_onnx": cosine_graph()}, "numerators"),
        ({"text_onnx": graph_of({"tokens": ["n", "t"]}, {"text": ["n", "t"]})}, "expected int32"),
        ({"text_onnx": graph_of({"lengths": ["n"]}, {"text": ["n"]}, TensorProto.INT32)}, "expected"),
        (
            {"image_onnx": graph_of({"image": [1, 8, 8, 3]}, {"embedding": [1, 8]}, TensorProto.UINT8)},
            "image",
        ),
        ({"tokenizer_json": b"{}"}, r"tokenizer\.json"),
    ],
)
def test_wrong_graphs(tmp_path: Path, members: dict[str, bytes], told: str) -> None:
    with pytest.raises(BundleError, match=told):
        Engine(with_members(tmp_path / "odd.cir", **members), device="cpu")


@pytest.mark.parametrize("location", ["secret.bin", "../{}/secret.bin", "{}/secret.bin"])
def test_a_graph_cannot_read_files_of_the_machine(
    tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """External data would let a bundle pull a file of the machine into a tensor."""
    (tmp_path / "secret.bin").write_bytes(bytes(8 * 8 * 3 * DIM * 4))
    monkeypatch.chdir(tmp_path)
    model = load_model_from_string(image_graph())
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    set_external_data(weight, location.format(tmp_path.name if ".." in location else tmp_path))
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    with pytest.raises(BundleError, match="cannot load the image graph"):
        Engine(with_members(tmp_path / "b.cir", image_onnx=model.SerializeToString()), device="cpu")


def test_a_graph_with_unknown_operators(tmp_path: Path) -> None:
    node = helper.make_node("Exec", ["image"], ["embedding"], domain="evil")
    infos = [
        helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 8, 8, 3]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM]),
    ]
    graph = helper.make_graph([node], "odd", infos[:1], infos[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(BundleError, match="cannot load the image graph"):
        Engine(with_members(tmp_path / "b.cir", image_onnx=model), device="cpu")
