"""A compose graph that can also be run in two parts: what it makes of the text alone, and the rest.

A text is encoded long before an image. What compose reads for the text alone, 5 of ARTEMIS' 5.2 MB, need not
wait for the encoder of images, which has driven it out of the caches by then. The parts are the nodes of the
graph, told apart by what they depend on: they compute the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.initializers import GRAPH, INITIALIZER, NAME
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import Node, model_fields, read_onnx_model
from cir_infer.bundle.wire import field as wire_field
from cir_infer.bundle.wire import fields_of, text_of
from cir_infer.errors import BundleError, DeviceError, shown
from cir_infer.processes.turns import Turn
from cir_infer.runtime.graph import Array, Graph, Tensor
from cir_infer.runtime.samples import sample_feeds

__all__ = ["WORTH", "Begun", "ComposeGraph", "Parts", "TextApart", "compose_graph", "parts_of", "text_apart"]

_log = logging.getLogger(__name__)

WORTH = 1 << 20
"""Bytes of weights for the text alone from which on a run of their own pays."""

_SAMPLES, _TOKENS = 3, 8
"""Of the run that tries the parts: texts, and what stands for a length that is left open."""

_NODE, _GRAPH_NAME, _INPUT, _OUTPUT = 1, 2, 11, 12
"""Of a graph, beside its constants."""
_FLOAT = 1
"""ONNX's number of the type float32."""

_CONSTANT, _TEXT, _REST = 0, 1, 2
"""What a value depends on: on nothing, on the text, on the reference too."""

Floats = npt.NDArray[np.float32]


class Parts:
    """The two parts of a compose graph.

    Args:
        first: takes `text`.
        rest: takes `reference`, of what the first gives what it needs, and `text` where it needs that too.
        outputs: names of the whole's outputs, which either may give.
    """

    def __init__(self, first: Graph, rest: Graph, outputs: Sequence[str]) -> None:
        self._first, self._rest, self._outputs = first, rest, outputs
        self._wanted = {tensor.name for tensor in rest.inputs}

    def begin(self, text: Array) -> dict[str, Array]:
        """What the graph makes of texts alone, one row for each.

        Raises:
            DeviceError: see `Graph.run`.
        """
        return self._first.run({"text": text})

    def finish(self, feeds: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs, of inputs and what `begin` gave for the text among them.

        Raises:
            DeviceError: see `Graph.run`.
        """
        known = {**feeds, **values}
        known.update(self._rest.run({name: value for name, value in known.items() if name in self._wanted}))
        return {name: known[name] for name in self._outputs}


@dataclass(frozen=True)
class Begun:
    """Texts, and what the first part of a compose graph has made of them.

    Attributes:
        text: their embeddings, float32 (Q, ...).
        parts: of the graph; None where it is to run as a whole.
        values: what the first gave, by name, (Q, ...) each.
    """

    text: Floats
    parts: Parts | None = None
    values: Mapping[str, Array] = field(default_factory=dict)

    def take(self, rows: Any) -> Begun:
        """Those of some texts: a slice, or a list of numbers."""
        return Begun(self.text[rows], self.parts, {name: value[rows] for name, value in self.values.items()})


class ComposeGraph:
    """A compose graph, a `Graph`, that can begin with the text. Threads may share one.

    Its parts are made when a second text is begun: a process that asks one query does without those
    milliseconds.

    Args:
        whole: the graph.
        make: its parts, None where it has none.
    """

    def __init__(self, whole: Graph, make: Callable[[], Parts | None]) -> None:
        self._whole = whole
        self._make: Callable[[], Parts | None] | None = make
        self._parts: Parts | None = None
        self._asked = False
        self._turn = Turn()
        self.inputs, self.outputs = whole.inputs, whole.outputs

    def begin(self, text: Array) -> Begun:
        """Texts, and what the graph makes of them alone, where it has parts by now.

        Raises:
            DeviceError: see `Graph.run`.
        """
        if self._asked and self._make is not None:
            self._turn.take_if_free(self._told_apart)  # other threads do not wait for it
        self._asked, parts = True, self._parts
        return Begun(text) if parts is None else Begun(text, parts, parts.begin(text))

    def _told_apart(self) -> None:
        if self._make is not None:
            self._parts = self._make()
            self._make = None

    def finish(self, feeds: Mapping[str, Array], begun: Begun) -> dict[str, Array]:
        """The outputs, of inputs whose text was begun, here or anywhere.

        Raises:
            DeviceError: see `Graph.run`.
        """
        parts = self._parts
        return (
            self.run(feeds)
            if parts is None or begun.parts is not parts
            else parts.finish(feeds, begun.values)
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`."""
        return self._whole.run(feeds)


def compose_graph(model: Model, load: Callable[[Model], Graph]) -> Graph:
    """A compose graph, which can begin with the text where that may pay.

    Args:
        model: the graph.
        load: makes a model ready to run.

    Raises:
        BundleError, DeviceError: see `Backend.load`.
    """
    whole = load(model)
    return whole if model.size < WORTH else ComposeGraph(whole, lambda: parts_of(model, whole, load))


def parts_of(model: Model, whole: Graph, load: Callable[[Model], Graph], worth: int = WORTH) -> Parts | None:
    """The parts of a compose graph; None where they do not pay, do not run or do not give the same bits.

    Args:
        model: the graph.
        whole: the same, ready to run.
        load: makes a model ready to run.
        worth: see `text_apart`.
    """
    if {tensor.name for tensor in whole.inputs} != {"reference", "text"}:
        return None  # as where one has a default, which no backend asks for
    try:
        apart = text_apart(model, worth)
        if apart is None:
            return None
        first = load(apart.first)
        parts = Parts(first, load(apart.rest(first.outputs)), [tensor.name for tensor in whole.outputs])
        feeds = sample_feeds(whole.inputs, _SAMPLES, _TOKENS)
        found = parts.finish(feeds, parts.begin(feeds["text"]))
        same = all(np.array_equal(value, found[name]) for name, value in whole.run(feeds).items())
        return parts if same else None
    except (BundleError, DeviceError, MemoryError) as error:  # as where a node holds a graph
        _log.debug("the compose graph runs as a whole only: %s", shown(error))
        return None


def text_apart(model: Model, worth: int = WORTH) -> TextApart | None:
    """A compose graph told apart; None where its text alone has fewer bytes of weights.

    Whether the parts can be run, and give the same, shows when they are.

    Raises:
        BundleError: it is no ONNX model.
    """
    graph = read_onnx_model(model.data, model.weights)
    if set(graph.inputs) != {"reference", "text"}:
        return None
    (stored,) = [value for number, value in model_fields(model.data) if number == GRAPH]
    fields = list(fields_of(stored))
    constants = {_name_of(value, NAME): value for number, value in fields if number == INITIALIZER}
    depends = {**dict.fromkeys((*constants, ""), _CONSTANT), "text": _TEXT}
    nodes: list[_Placed] = []
    for node, message in zip(graph.nodes, (v for number, v in fields if number == _NODE), strict=True):
        on = max((depends.get(name, _REST) for name in node.inputs), default=_CONSTANT)
        depends.update(dict.fromkeys(node.outputs, on))
        nodes.append(_Placed(node, message, on))
    needed = {
        *graph.outputs,
        *(name for placed in nodes if placed.on == _REST for name in placed.node.inputs),
    }
    of_text = (name for placed in nodes if placed.on == _TEXT for name in placed.node.outputs)
    between = [name for name in of_text if name in needed]
    apart = TextApart(model, fields, constants, nodes, between, graph.outputs)
    return apart if apart.weights >= worth else None


@dataclass(frozen=True)
class _Placed:
    """A node, as it is read and as it is stored, and what it depends on."""

    node: Node
    message: memoryview
    on: int


class TextApart:
    """A compose graph told apart; made by `text_apart`.

    Attributes:
        first: the part that needs the text alone.
        weights: bytes of the constants that it has.
    """

    def __init__(
        self,
        model: Model,
        fields: Sequence[tuple[int, Any]],
        constants: Mapping[str, memoryview],
        nodes: Sequence[_Placed],
        between: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        self._model, self._fields, self._constants, self._nodes = model, fields, constants, nodes
        self._between, self._outputs = between, outputs
        # Types of outputs need not be said.
        ends = [wire_field(_OUTPUT, wire_field(1, name.encode())) for name in between]
        self.first = self._part(between, _TEXT, ends)
        self.weights = self.first.size

    def rest(self, given: Sequence[Tensor]) -> Model:
        """The other part.

        Args:
            given: what the first part gives, float32.
        """
        left = [name for name in self._outputs if name not in self._between]
        return self._part(left, _REST, [wire_field(_INPUT, _declared(tensor)) for tensor in given])

    def _part(self, ends: Sequence[str], on: int, more: Sequence[bytes]) -> Model:
        """The nodes of one part that make some values, with their constants, inputs and outputs."""
        needed, chosen = set(ends), set[int]()
        for at, placed in reversed([*enumerate(self._nodes)]):
            if placed.on in (_CONSTANT, on) and not needed.isdisjoint(placed.node.outputs):
                needed.update(placed.node.inputs)
                chosen.add(at)
        kept = [wire_field(_NODE, placed.message) for at, placed in enumerate(self._nodes) if at in chosen]
        kept += [wire_field(INITIALIZER, value) for name, value in self._constants.items() if name in needed]
        for number, value in self._fields:
            if (
                number == _GRAPH_NAME
                or (number == _INPUT and _name_of(value, 1) in needed)
                or (number == _OUTPUT and on == _REST and _name_of(value, 1) in ends)
            ):
                kept.append(wire_field(number, value))
        graph = wire_field(GRAPH, b"".join([*kept, *more]))
        fields = model_fields(self._model.data)
        others = b"".join(wire_field(number, value) for number, value in fields if number != GRAPH)
        weights = {name: value for name, value in self._model.weights.items() if name in needed}
        return Model(others + graph, weights, self._model.mapped)


def _declared(tensor: Tensor) -> bytes:
    """What a graph says of an input of float32."""
    lengths = (b"" if length is None else wire_field(1, length) for length in tensor.shape)
    shape = b"".join(wire_field(1, length) for length in lengths)
    kind = wire_field(1, wire_field(1, _FLOAT) + wire_field(2, shape))
    return wire_field(1, tensor.name.encode()) + wire_field(2, kind)


def _name_of(message: memoryview, number: int) -> str:
    return next((text_of(value) for found, value in fields_of(message) if found == number), "")
