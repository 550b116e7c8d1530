"""A bundle on OpenVINO: the answers of ONNX Runtime, the same checks, and good manners in a process."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cir_infer import Engine, Gallery, Searcher
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.model import Model
from cir_infer.errors import BundleError, DeviceError
from cir_infer.extras import is_installed
from cir_infer.runtime import devices, threads
from cir_infer.runtime.onnx import OnnxBackend, OnnxGraph
from cir_infer.runtime.recurrent.processor import ProcessorEncoder
from cir_infer.runtime.samples import sample_feeds
from tests.bundles import (
    SIDE,
    GraphBuilder,
    manifest_of,
    members_of,
    write_explained_bundle,
    write_tiny_bundle,
)
from tests.runtime.recurrent.graphs import recurrent_graph

needs_openvino = pytest.mark.skipif(
    not is_installed("openvino"), reason="openvino is not installed (pip install 'cir-infer[openvino]')"
)
SYSTEMS = ("artemis", "cosine", "separate", "features", "text-only", "image-only", "tokens")


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Engine:
    return Engine(bundle, device="openvino", threads=2)


# ---- answers


@needs_openvino
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_graph_answers_as_on_onnx_runtime(system: str, tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.cir", system)
    with Engine(path, "cpu") as reference, Engine(path, "openvino") as found:
        for name, graph in reference._graphs.items():
            other = found._graphs[name]
            assert other.inputs == graph.inputs
            assert [t.name for t in other.outputs] == [t.name for t in graph.outputs]
            for rows, tokens in ((1, 1), (3, 7), (5, 64)):
                feeds = sample_feeds(graph.inputs, rows, tokens, seed=rows)
                expected, given = graph.run(feeds), other.run(feeds)
                for output, value in expected.items():
                    assert given[output].dtype == value.dtype
                    np.testing.assert_allclose(given[output], value, rtol=1e-5, atol=1e-5, err_msg=name)
        assert found.device == "openvino" and found.fingerprint == reference.fingerprint
        assert found.describe()["backend"]["library"].startswith("openvino ")


@needs_openvino
@pytest.mark.parametrize(("op", "over_time"), [("GRU", False), ("GRU", True), ("LSTM", False)])
def test_recurrent_layers_stop_at_each_texts_length(op: str, over_time: bool) -> None:
    from cir_infer.runtime.onnx import OnnxBackend
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

    model = Model(recurrent_graph(op, over_time=over_time, out=4))
    exact, found = OnnxBackend("cpu", 1).load("text", model), OpenVinoBackend(1).load("text", model)
    random = np.random.default_rng(0)
    for lengths in ([3], [2, 3], [5, 1, 4, 1, 5]):
        tokens = random.integers(0, 11, (len(lengths), max(lengths))).astype(np.int32)
        feeds = {"tokens": tokens, "lengths": np.array(lengths, np.int32)}
        np.testing.assert_allclose(found.run(feeds)["text"], exact.run(feeds)["text"], atol=1e-6)


@needs_openvino
def test_texts_end_where_there_is_text() -> None:
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

    graph = OpenVinoBackend(1).load("text", Model(recurrent_graph(out=4)))
    for lengths in ([0], [0, 2], [3, 4], [-1]):
        feeds = {"tokens": np.ones((len(lengths), 3), np.int32), "lengths": np.array(lengths, np.int32)}
        with pytest.raises(DeviceError, match=r"given 'lengths' from .* expected 1 to 3"):
            graph.run(feeds)
    nothing = {"tokens": np.ones((0, 3), np.int32), "lengths": np.empty(0, np.int32)}
    assert graph.run(nothing)["text"].shape == (0, 4)


@needs_openvino
def test_lengths_that_a_graph_computes_are_refused() -> None:
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

    model = onnx.load_from_string(recurrent_graph())
    layer = next(node for node in model.graph.node if node.op_type == "GRU")
    layer.input[4] = "same"
    model.graph.node.insert(0, helper.make_node("Identity", ["lengths"], ["same"]))
    with pytest.raises(DeviceError, match="stop at computed lengths"):
        OpenVinoBackend(1).load("text", Model(model.SerializeToString()))


@needs_openvino
def test_nothing_asked_is_nothing_answered(opened: Engine) -> None:
    graph = opened._graphs["image"]
    feeds = {tensor.name: np.empty((0, *tensor.shape[1:]), tensor.dtype) for tensor in graph.inputs}
    assert {value.shape[0] for value in graph.run(feeds).values()} == {0}


@needs_openvino
def test_no_picture_makes_no_row_through_an_encoder_that_pools() -> None:
    """OpenVINO's poolings refuse a batch of none."""
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

    g = GraphBuilder()
    floats = g.add("Cast", ["image"], "floats", to=TensorProto.FLOAT)
    planes = g.add("Transpose", [floats], "planes", perm=(0, 3, 1, 2))
    pooled = g.add("MaxPool", [planes], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    g.add("ReduceMean", [pooled], "embedding", axes=[2, 3], keepdims=0)
    model = Model(g.model({"image": ("u8", ["n", 8, 8, 3])}, {"embedding": ("f32", ["n", 3])}))
    for backend in (OnnxBackend("cpu", 1), OpenVinoBackend(1)):
        found = backend.load("image", model).run({"image": np.empty((0, 8, 8, 3), np.uint8)})["embedding"]
        assert (found.shape, found.dtype) == ((0, 3), np.float32)


@needs_openvino
def test_the_committed_model_finds_the_same(tmp_path: Path) -> None:
    golden = Path(__file__).parents[2] / "golden" / "tiny.cir"
    with Engine(golden, "cpu") as reference, Engine(golden, "openvino") as found:
        feeds = sample_feeds(reference._graphs["image"].inputs, 4, 1)
        rows = [engine.encode_prepared(feeds["image"]) for engine in (reference, found)]
        np.testing.assert_allclose(rows[0], rows[1], atol=1e-5)


@needs_openvino
def test_an_explanation_runs_where_the_rows_were_made(tmp_path: Path) -> None:
    path = write_explained_bundle(tmp_path / "explained.cir")
    batch = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    with Engine(path, "cpu") as reference, Engine(path, "openvino") as found:
        for expected, given in zip(
            reference.encode_in_parts(batch), found.encode_in_parts(batch), strict=True
        ):
            np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-4)


@needs_openvino
def test_a_search_finds_what_it_finds_on_onnx_runtime(
    opened: Engine, searcher: Searcher, gallery_path: Path, pictures: list[Path]
) -> None:
    with Searcher(opened, gallery_path) as other:
        for picture in pictures[:4]:
            expected, found = searcher.query(picture, "is red"), other.query(picture, "is red")
            assert found.ids == expected.ids
            refined = other.query(found[1], "is longer")
            assert refined.ids == searcher.query(expected[1], "is longer").ids


@needs_openvino
def test_threads_share_a_graph(opened: Engine) -> None:
    batches = [np.full((n, SIDE, SIDE, 3), 40 * n, np.uint8) for n in range(1, 5)]
    for batch in batches:
        batch[:, 2, : len(batch)] = 7
    expected = [opened.encode_prepared(batch) for batch in batches]
    wrong: list[int] = []

    def ask(number: int) -> None:
        for _ in range(20):
            if not np.array_equal(opened.encode_prepared(batches[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_openvino
def test_what_was_given_and_what_was_answered_stay_as_they_are(opened: Engine) -> None:
    first = np.full((2, SIDE, SIDE, 3), 9, np.uint8)
    first[0, 0] = 200
    rows = opened.encode_prepared(first)
    kept, before = rows.copy(), first.copy()
    opened.encode_prepared(255 - first)
    np.testing.assert_array_equal(rows, kept)
    np.testing.assert_array_equal(first, before)


# ---- what it refuses


@needs_openvino
def test_a_graph_answers_one_row_for_each_input(tmp_path: Path) -> None:
    """The same check and the same words as on ONNX Runtime."""
    from cir_infer.runtime.onnx import OnnxBackend
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float"], ["embedding"], axes=[0], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mixing",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["m", 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    said = []
    for backend in (OnnxBackend("cpu", 1), OpenVinoBackend(1)):
        with pytest.raises(
            BundleError, match="expected one for each"
        ) as refusal:  # there already when it is tried
            loaded = backend.load("image", Model(model.SerializeToString()))
            loaded.run({"image": np.zeros((3, 4), np.uint8)})
        said.append(str(refusal.value))
    assert said[0] == said[1]


@needs_openvino
def test_only_onnx_is_read() -> None:
    """OpenVINO would guess at the format of what it is given; the guards know one."""
    from cir_infer.runtime.openvino.api import OpenVinoDevice

    for content in (b'<?xml version="1.0"?><net name="x" version="11"></net>', b"TFL3", b"\x08\x07garbage"):
        with pytest.raises(BundleError, match=r"OpenVINO .* cannot load the image graph") as refusal:
            OpenVinoDevice().compile("image", content, ("image",), ("embedding",), 1)
        assert len(str(refusal.value)) < 500 and "\n" not in str(refusal.value)


@needs_openvino
def test_inputs_that_are_missing_or_unknown_are_named(opened: Engine) -> None:
    graph = opened._graphs["text"]
    with pytest.raises(DeviceError, match=r"takes \['tokens', 'lengths'\], not \['tokens'\]"):
        graph.run({"tokens": np.zeros((1, 6), np.int32)})


@needs_openvino
def test_what_takes_longer_there_than_a_run_costs_elsewhere_runs_elsewhere(
    opened: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small compose graph; a recurrent text encoder, which never reads on into another text's padding."""
    assert isinstance(opened._graphs["compose"], OnnxGraph)
    assert opened.describe()["backend"]["compose"].startswith("onnxruntime ")
    path = tmp_path / "bigru.cir"
    text = recurrent_graph("GRU", 2, hidden=3, width=5, words=15)
    write_bundle(path, manifest_of("artemis"), {**members_of("artemis"), "text.onnx": text})
    with Engine(path, "cpu") as reference, Engine(path, "openvino") as found:
        assert isinstance(found._graphs["text"], ProcessorEncoder)
        texts = ["red", "red and blue dress with more red"]
        np.testing.assert_array_equal(found.encode_texts(texts), reference.encode_texts(texts))
    monkeypatch.setattr(threads, "_SMALL", 10)
    with Engine(path, "openvino") as large:
        assert not isinstance(large._graphs["compose"], OnnxGraph)


@needs_openvino
def test_a_graph_that_fails_says_so_shortly(opened: Engine) -> None:
    with pytest.raises(DeviceError, match="OpenVINO failed in the image graph: ") as refusal:
        opened._graphs["image"].run({"image": np.zeros((2, 3), np.uint8)})
    assert len(str(refusal.value)) < 500


def test_where_it_is_missing_the_command_that_installs_it_is_named(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"'openvino' needs openvino.*pip install 'cir-infer\[openvino\]'"):
        Engine(bundle, device="openvino")


def test_auto_does_not_take_it(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An installed package changes no answers, not even their last digit."""
    with caplog.at_level(logging.INFO, devices.__name__), Engine(bundle, "auto") as engine:
        assert engine.device != "openvino"
    assert "device auto: taking" in caplog.text


@needs_openvino
def test_after_a_failed_run_every_graph_works(bundle: Path) -> None:
    """Run in the caller's thread, failures left OpenVINO 2026.4 with pointers to what was gone."""
    program = """
import sys
import numpy as np
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.errors import DeviceError
from cir_infer.runtime.openvino.backend import OpenVinoBackend
from cir_infer.runtime.onnx import OnnxBackend, OnnxGraph
from cir_infer.runtime.recurrent.processor import ProcessorEncoder
from cir_infer.runtime.samples import sample_feeds
backend, bundle, failed = OpenVinoBackend(1), Bundle(sys.argv[1]), 0
for name in 5 * list(bundle.manifest.graphs):
    graph = backend.load(name, bundle.graph(name))
    graph.run(sample_feeds(graph.inputs, 2, 5))
    for _ in range(3):
        try:
            graph.run({t.name: np.zeros((2, *[7] * len(t.shape)), t.dtype) for t in graph.inputs})
        except DeviceError:
            failed += 1
    graph.run(sample_feeds(graph.inputs, 3, 7))
print(failed)
"""
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("45\n", 0), done.stderr


# ---- its manners


_TRIPWIRE = "raise SystemExit('telemetry was imported')\n"


@needs_openvino
def test_nothing_is_reported_to_anybody(bundle: Path, tmp_path: Path) -> None:
    """`openvino` reports its import through this package, which pip brings along."""
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text(_TRIPWIRE)
    program = (
        "import sys\nsys.path.insert(0, sys.argv[2])\nfrom cir_infer import Engine\n"
        "Engine(sys.argv[1], 'openvino').warm_up()\nprint('openvino_telemetry' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(bundle), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr


@needs_openvino
def test_a_forked_child_is_refused_and_ends_in_peace(bundle: Path, tmp_path: Path) -> None:
    """Locks of OpenVINO that a thread of the parent held stay locked in the child."""
    program = """
import os, sys
from cir_infer import Engine
from cir_infer.errors import DeviceError
engine = Engine(sys.argv[1], 'openvino')
engine.warm_up()
for use in (
    engine.warm_up,
    lambda: Engine(sys.argv[1], 'openvino'),
    lambda: Engine(sys.argv[1], 'cpu').warm_up(),
):
    pid = os.fork()
    if pid == 0:
        try:
            use()
            print('used', flush=True)
        except DeviceError as error:
            print('spawn' in str(error), flush=True)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
engine.warm_up()
"""
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("True\nTrue\nused\n", 0), done.stderr


@needs_openvino
def test_a_program_may_end_while_a_thread_opens_a_graph(bundle: Path) -> None:
    """Interrupted as it opens a bundle, say: the others of its graphs are opened by a thread of their own."""
    program = """
import sys, threading
from cir_infer.bundle import Bundle
from cir_infer.runtime.openvino import api
sys.setswitchinterval(100)  # who has Python's lock keeps it, until he gives it away
ends, said = threading.Event(), api._tensors
def tensors(*given):
    ends.set()  # asked for its first type a port gives the lock away
    return said(*given)
api._tensors = tensors
model, device = Bundle(sys.argv[1]).graph("image"), api.OpenVinoDevice()
compile = lambda: device.compile("image", model, ("image",), ("embedding",), 1)
threading.Thread(target=compile, daemon=True).start()
ends.wait()
"""
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


@needs_openvino
def test_a_child_opens_it_first(bundle: Path) -> None:
    """Forked before this process used it: here one that does so in a child of its own."""
    program = (
        "import os, sys\nfrom cir_infer import Engine\n"
        "if os.fork() == 0:\n    Engine(sys.argv[1], 'openvino').warm_up()\n    sys.exit(3)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.returncode) == ("3\n", 0), done.stderr


@needs_openvino
def test_threads_are_the_callers(bundle: Path) -> None:
    """Affinity too: no thread of OpenVINO's is bound to one processor."""
    allowed = os.sched_getaffinity(0)
    with Engine(bundle, "openvino", threads=1) as engine:
        engine.warm_up()
        for task in Path("/proc/self/task").iterdir():
            assert os.sched_getaffinity(int(task.name)) == allowed
        assert engine.describe()["backend"]["threads"] == 1


@needs_openvino
def test_a_gallery_of_one_is_the_others(
    bundle: Path, opened: Engine, pictures: list[Path], tmp_path: Path
) -> None:
    """Both keep the bundle's promise, so either may ask what the other has encoded."""
    with Gallery.create(tmp_path / "g.gallery", opened, dtype="float32") as gallery:
        gallery.add(pictures[:5], ids=[str(number) for number in range(5)])
    with Searcher(bundle, tmp_path / "g.gallery", "cpu") as searcher:
        assert len(searcher.query(pictures[0], "is red")) == 5


def test_the_bundle_guards_come_first(tmp_path: Path) -> None:
    """What a bundle's checks refuse never reaches a library that reads graphs."""
    members = members_of("artemis")
    model = onnx.load_from_string(members["image.onnx"])
    model.graph.node[0].op_type = "NonZero"
    members["image.onnx"] = model.SerializeToString()
    path = tmp_path / "odd.cir"
    write_bundle(path, manifest_of("artemis"), members)
    with pytest.raises(BundleError, match="operator 'NonZero'"):
        devices.open_graphs({"image": Bundle(path).graph("image")}, "openvino", 1)
