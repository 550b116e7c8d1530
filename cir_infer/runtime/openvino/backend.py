"""OpenVINO as a `Backend`: the graphs of a bundle on the processor, in the types that they have.

Encoders of images may run on an Intel GPU, one image at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import NUMBERS, OnnxModel, read_onnx_model
from cir_infer.errors import DeviceError, shown
from cir_infer.processes.ending import native_call
from cir_infer.processes.fork import PerProcess
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.kept.graph_file import GraphFile
from cir_infer.runtime.kept.graphs import Form
from cir_infer.runtime.kept.weights import Weight
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.openvino.api import VERSION, Compiled, OpenVinoDevice, Place, Requests, told
from cir_infer.runtime.outputs import one_for_each
from cir_infer.runtime.parity import check_parity, computes_in
from cir_infer.runtime.samples import SAMPLE_TOKENS
from cir_infer.runtime.threads import threads_for
from cir_infer.scoring.contract import Scorer

__all__ = ["OpenVinoBackend", "OpenVinoGraph"]

PLACES: dict[str, Place | None] = {"openvino": None, "openvino-gpu": "GPU"}
"""By device, where graphs run that read images alone; None is where all others do."""

_MARK = b"compiled by openvino "
"""How what is kept begins; an ONNX model begins with a number."""

_ROWS = 3
"""That a graph is tried with."""

_BYTES = next(kind for kind, dtype in NUMBERS.items() if dtype == np.dtype(np.uint8))


class OpenVinoBackend:
    """Runs graphs on the processor through OpenVINO, a small compose graph through ONNX Runtime.

    Compose is some products with one row, so what a run costs counts: ARTEMIS' takes 0.15 ms in ONNX Runtime
    and 0.46 in OpenVINO. It is float32 in every precision.

    Args:
        threads: inside an operator; None lets OpenVINO take the physical cores.
        precision: the bundle's. In bfloat16 its graphs with weights in bfloat16 compute in it.
        device: "openvino", or "openvino-gpu", where graphs that read images alone run on an Intel GPU.
        tokens: the most that a text may have.

    Raises:
        DeviceError: see `OpenVinoDevice`; or this processor does not compute in bfloat16, the precision.
    """

    def __init__(
        self,
        threads: int | None = None,
        precision: str = "float32",
        device: str = "openvino",
        tokens: int = 512,
    ) -> None:
        self.device = device
        self._tokens = min(SAMPLE_TOKENS, tokens)
        self._threads, self._single = threads, False
        self._small = OnnxBackend("cpu", threads)
        self._processor = OpenVinoDevice()
        self._gpu = None if (place := PLACES[device]) is None else OpenVinoDevice(place)
        self._bfloat16 = precision == "bfloat16"
        self._instead = "use the float32 bundle" if self._bfloat16 else "use device='cpu'"
        if self._bfloat16 and not self._processor.computes_bfloat16:
            raise DeviceError(
                f"the processor ({self._processor.name}) does not compute in bfloat16, and OpenVINO would "
                "use float32 in its place; use the float32 bundle"
            )

    def one_row(self) -> OpenVinoBackend:
        """The same, which makes graphs for one row at a time."""
        other = copy(self)
        other._single = True
        return other

    def load(self, name: str, model: Model) -> Graph:
        """See `Backend.load`."""
        if name == "compose" and threads_for(name, model.size, None) == 1:
            return self._small.load(name, model)
        said = read_onnx_model(model.data, model.weights)
        inputs = tuple(given for given in said.inputs if given not in said.constants)
        if self._gpu is not None and inputs == ("image",):
            compiled = self._gpu.compile(name, model, inputs, said.outputs, single=True)
            return self._tried(name, model, OpenVinoGraph(name, compiled, on_gpu=True), said)
        threads = threads_for(name, model.size, self._threads)
        lowered = self._bfloat16 and said.stores_bfloat16
        stops = _stops(name, said, self._instead)
        compiled = self._processor.compile(name, model, inputs, said.outputs, threads, lowered, self._single)
        return self._tried(name, model, OpenVinoGraph(name, compiled, stops), said)

    def _tried(self, name: str, model: Model, graph: OpenVinoGraph, said: OnnxModel) -> OpenVinoGraph:
        """The graph, once it answered as ONNX Runtime does.

        OpenVINO 2026.4 makes something else of some graphs, and says nothing: in int8 a product of weights
        with activations that were turned and divided gives numbers of 1e37; in float32 sums of bytes end at
        255 where ONNX's go round, and poolings that count their padding count too much at the end.

        Raises:
            DeviceError: it does not.
        """
        reference = self._small.load(name, model)
        what = f"OpenVINO's {name} graph"
        check_parity(what, graph, reference, computes_in(said), _ROWS, self._tokens, self._instead)
        return graph

    @property
    def reads_in_place(self) -> bool:
        """See `Keeping.reads_in_place`: the graph is made whole before OpenVINO reads it."""
        return False

    def made_by(self) -> dict[str, Any]:
        """See `Keeping.made_by`."""
        names = [self._processor.name, None if self._gpu is None else self._gpu.name]
        return {**self._small.made_by(), "openvino": [VERSION, *names, self._bfloat16]}

    def form(self, name: str, model: Model, graph: Graph, scratch: Path) -> Form:
        """See `Keeping.form`: what OpenVINO has compiled for this processor."""
        if not isinstance(graph, OpenVinoGraph):
            return self._small.form(name, model, graph, scratch)
        lowered = self._bfloat16 and read_onnx_model(model.data, model.weights).stores_bfloat16
        said = {
            "inputs": [tensor.name for tensor in graph.inputs],
            "outputs": [tensor.name for tensor in graph.outputs],
            "stops": graph.stops,
            "on_gpu": graph.on_gpu,
            "size": model.size,
            "lowered": lowered,
        }
        data = graph.exported()
        weight = Weight("compiled", _BYTES, (len(data),), memoryview(data))
        return _MARK + json.dumps(said).encode(), [weight]

    def reopen(self, name: str, found: GraphFile) -> Graph:
        """See `Keeping.reopen`."""
        if not found.model.startswith(_MARK):
            return self._small.reopen(name, found)
        said = json.loads(found.model[len(_MARK) :])
        ((_, exported),) = found.weights
        names = tuple(said["inputs"]), tuple(said["outputs"])
        if said["on_gpu"]:
            assert self._gpu is not None
            return OpenVinoGraph(name, self._gpu.reopen(name, exported, *names, single=True), on_gpu=True)
        threads = threads_for(name, said["size"], self._threads)
        compiled = self._processor.reopen(name, exported, *names, threads, said["lowered"], self._single)
        return OpenVinoGraph(name, compiled, said["stops"])

    def chains(self, graphs: Mapping[str, Graph], scorer: Scorer, names: tuple[str, ...]) -> None:
        """See `Backend.chains`: there is no GPU to share."""

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        return {
            "library": f"openvino {VERSION}",
            "processor": self._processor.name,
            **({} if self._gpu is None else {"gpu": self._gpu.name}),
            "threads": self._threads,
            "compose": self._small.describe()["library"],
        }


def _stops(name: str, graph: OnnxModel, instead: str) -> str | None:
    """The input with the lengths at which recurrent layers stop; None where there is none.

    OpenVINO 2026.4 lets them read on to the longest of a batch, and says nothing.
    """
    asked = {
        node.inputs[4] for node in graph.nodes if node.op in ("GRU", "LSTM", "RNN") and len(node.inputs) > 4
    }
    asked.discard("")
    if not asked:
        return None
    if len(asked) > 1 or not asked <= set(graph.inputs) - set(graph.constants):
        raise DeviceError(
            f"the {name} graph has recurrent layers that stop at computed lengths "
            f"({shown(sorted(asked), 60)}), which OpenVINO does not do; {instead}"
        )
    read = {given for node in graph.nodes for given in node.inputs}
    if not any(given.name in read and len(given.shape or ()) > 1 for given in graph.declared):
        raise DeviceError(
            f"the {name} graph has recurrent layers that stop at {shown(asked.pop(), 60)} and reads no "
            f"tokens to be cut there; OpenVINO would read on, so {instead}"
        )
    return asked.pop()


class OpenVinoGraph:
    """A compiled graph. Threads may share it; a forked child neither uses nor frees it.

    Args:
        name: of the graph.
        compiled: what runs it.
        stops: the input that says where each sequence ends, where layers must know; those of one length then
            run together, cut to it along the second axis.
        on_gpu: whether it runs on an Intel GPU.
    """

    def __init__(self, name: str, compiled: Compiled, stops: str | None = None, on_gpu: bool = False) -> None:
        self._name = name
        self.stops, self.on_gpu = stops, on_gpu
        self._requests = PerProcess(partial(_refuse_in_child, name), compiled.requests)
        self.inputs, self.outputs = compiled.inputs, compiled.outputs

    def exported(self) -> bytes:
        """What `OpenVinoDevice.reopen` makes this graph of."""
        return self._requests.get().exported()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`."""
        requests = self._requests.get()
        wanted = [tensor.name for tensor in self.inputs]
        if sorted(feeds) != sorted(wanted):
            raise DeviceError(f"the {self._name} graph takes {shown(wanted)}, not {shown(list(feeds))}")
        if self.stops is not None:
            self._check_stops(feeds)
        try:
            with native_call:
                values = self._run(requests, feeds)
        except Exception as error:
            raise DeviceError(f"OpenVINO failed in the {self._name} graph: {told(error)}") from error
        outputs = {tensor.name: value for tensor, value in zip(self.outputs, values, strict=True)}
        return one_for_each(self._name, feeds, outputs)

    def _check_stops(self, feeds: Mapping[str, Array]) -> None:
        """Where a sequence is to end it has to be: at none, OpenVINO 2026.4 gives what lay in memory."""
        lengths = feeds[str(self.stops)]
        longest = min((value.shape[1] for value in feeds.values() if value.ndim > 1), default=0)
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= longest:
            raise DeviceError(
                f"the {self._name} graph was given {shown(self.stops, 60)} from {lengths.min()} to "
                f"{lengths.max()}; expected 1 to {longest}"
            )

    def _run(self, requests: Requests, feeds: Mapping[str, Array]) -> list[Array]:
        given = [feeds[tensor.name] for tensor in self.inputs]
        if not len(given[0]) and all(None not in tensor.shape[1:] for tensor in self.outputs):
            # Not all of OpenVINO's operators take none: poolings refuse it.
            shapes = [(0, *(length or 0 for length in tensor.shape[1:])) for tensor in self.outputs]
            return [np.empty(shape, out.dtype) for shape, out in zip(shapes, self.outputs, strict=True)]
        lengths = None if self.stops is None else feeds[self.stops]
        if lengths is None or len(lengths) == 0:
            return requests.run(given)
        outputs: list[Array] = []
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            parts = [value[rows, :length] if value.ndim > 1 else value[rows] for value in given]
            for place, value in enumerate(requests.run(parts)):
                if place == len(outputs):
                    outputs.append(np.empty((len(lengths), *value.shape[1:]), value.dtype))
                outputs[place][rows] = value
        return outputs


def _refuse_in_child(name: str) -> Requests:
    raise DeviceError(
        f"the {name} graph was opened by the process from which this one was forked, and its threads stayed "
        "there; open the bundle in this process"
    )
