"""A session of ONNX Runtime: what it is run by, and what becomes of what it cannot run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError
from cir_infer.runtime.onnx import OnnxBackend, OnnxGraph


def adding() -> bytes:
    names = ("reference", "text", "numerators")
    reference, text, sums = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in names
    ]
    node = helper.make_node("Add", [*names[:2]], [names[2]])
    graph = helper.make_graph([node], "compose", [reference, text], [sums])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "text",
    [
        None,
        np.ones((2, 4)),
        np.ones((2, 5), np.float32),
        np.ones((2, 2, 2), np.float32),
        np.ones((3, 4), np.float32),
        "words",
    ],
    ids=["missing", "another type", "another length", "another rank", "another batch", "no array"],
)
def test_what_cannot_be_run_is_one_typed_error(text: Any, capfd: pytest.CaptureFixture[str]) -> None:
    graph = OnnxBackend("cpu", 1).load("compose", Model(adding()))
    one = np.ones((2, 4), np.float32)
    feeds = {"reference": one} if text is None else {"reference": one, "text": text}
    with pytest.raises(DeviceError, match="ONNX Runtime failed in the compose graph") as caught:
        graph.run(feeds)
    assert "\n" not in str(caught.value)
    assert "Falling back" not in capfd.readouterr().out
    assert graph.run({"reference": one, "text": one})["numerators"].sum() == 16


def test_arrays_need_not_lie_as_the_graph_wants_them() -> None:
    graph = OnnxBackend("cpu", 1).load("compose", Model(adding()))
    wide = np.arange(16, dtype=np.float32).reshape(2, 8)
    odd = np.frombuffer(b"\0" + wide.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 8)
    for one in (wide[:, ::2], np.asfortranarray(wide)[:, :4], odd[:, :4], wide[::-1, 3::-1]):
        found = graph.run({"reference": one, "text": np.broadcast_to(np.float32(1), (2, 4))})
        assert np.array_equal(found["numerators"], one + 1)
    assert graph.run({"reference": wide[:0, :4], "text": wide[:0, :4]})["numerators"].shape == (0, 4)


class Later:
    """A session of a later version, which runs by something of another form, or by nothing that it tells."""

    def __init__(self, inside: Any) -> None:
        self._session = onnxruntime.InferenceSession(adding(), providers=["CPUExecutionProvider"])
        self._sess = inside

    def get_inputs(self) -> Sequence[Any]:
        return self._session.get_inputs()

    def get_outputs(self) -> Sequence[Any]:
        return self._session.get_outputs()

    def run(self, names: Sequence[str], feeds: Mapping[str, Any]) -> Any:
        return self._session.run(names, feeds)


class Inside:
    def run(self, request: object) -> object:
        return request


@pytest.mark.parametrize("inside", [Inside(), object(), None], ids=["another form", "another name", "none"])
def test_a_version_with_another_inside_runs_by_its_own_call(inside: Any) -> None:
    later: Any = Later(inside)
    graph = OnnxGraph("compose", later)
    one = np.ones((2, 4), np.float32)
    assert graph.run({"reference": one, "text": one})["numerators"].sum() == 16


_FLOAT16 = """
import sys
from cir_infer.bundle.model import Model
from cir_infer.runtime.onnx import OnnxBackend
import numpy as np
graph = OnnxBackend("cpu", 1).load("text", Model(open(sys.argv[1], "rb").read()))
print(graph.run({"seen": np.ones((2, 3, 4), np.float16)})["made"].shape)
"""


def test_products_of_what_was_transposed_open_in_float16(tmp_path: Path) -> None:
    """ONNX Runtime ended the process, without a word."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape)
        for name, shape in (("seen", ["n", "t", 4]), ("made", ["n", "t", 4]))
    ]
    nodes = [
        helper.make_node("Transpose", ["seen"], ["first"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["first", "weight"], ["second"]),
        helper.make_node("Transpose", ["second"], ["made"], perm=[1, 0, 2]),
    ]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float16), "weight")
    graph = helper.make_graph(nodes, "text", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    call = [sys.executable, "-c", _FLOAT16, str(tmp_path / "model.onnx")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "(2, 3, 4)"), done.stderr
