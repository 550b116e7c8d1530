"""Recognises the text graphs that the recurrent kernel computes, and takes their weights.

    tokens -> word vectors -> GRU or LSTM, one direction or two -> last state, or maximum over the steps
           [-> linear layer] [-> divided by its norm] -> text

Node by node, from the output back: a graph that computes anything else is refused with the reason, so that
the kernel never stands in for something that it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_infer.bundle.onnx_model import Node, OnnxModel
from cir_infer.errors import DeviceError
from cir_infer.runtime.graph import Array

__all__ = ["NoKernelError", "RecurrentText", "match_text_graph"]

_FLOATS = (1, 10)
_GATES = {"GRU": 3, "LSTM": 4}
_NEVER_WINS = -1.0
"""Outputs of an LSTM and of a GRU lie within (-1, 1), so this or less masks a step."""


class NoKernelError(DeviceError):
    """The recurrent kernel does not compute this graph, or not on this GPU; the message says why."""


@dataclass(frozen=True, eq=False)
class RecurrentText:
    """A text encoder. G gates in ONNX' order: z, r, h of a GRU; i, o, f, c of an LSTM.

    Attributes:
        kind: "gru" or "lstm".
        words: float32 (vocabulary, I).
        input_weights: float32 (directions, G, H, I).
        recurrent_weights: float32 (directions, G, H, H).
        input_bias: float32 (directions, G, H): what is added outside of a GRU's reset gate.
        candidate_bias: float32 (directions, H): what that gate multiplies; None for an LSTM.
        over_time: whether the maximum over the steps is taken, else the last state of each direction.
        projection: float32 (out, directions * H), or None.
        projection_bias: float32 (out,), with a projection.
        least_square: the text is divided by the root of its sum of squares, of which it takes at least this;
            None where it is not divided.
    """

    kind: str
    words: Array
    input_weights: Array
    recurrent_weights: Array
    input_bias: Array
    candidate_bias: Array | None
    over_time: bool
    projection: Array | None
    projection_bias: Array | None
    least_square: float | None

    @property
    def directions(self) -> int:
        """1, or 2: forward and then reverse."""
        return int(self.recurrent_weights.shape[0])

    @property
    def hidden(self) -> int:
        """H, of each direction."""
        return int(self.recurrent_weights.shape[3])

    @property
    def out(self) -> int:
        """Values of a text."""
        return self.directions * self.hidden if self.projection is None else int(self.projection.shape[0])


def match_text_graph(model: OnnxModel) -> RecurrentText:
    """The encoder that a text graph is.

    Raises:
        NoKernelError: it is another kind of graph.
    """
    try:
        return _Matcher(model).text()
    except IndexError as error:
        raise NoKernelError("one of its operators lacks an input") from error


class _Matcher:
    def __init__(self, model: OnnxModel) -> None:
        if sorted(model.inputs) != ["lengths", "tokens"] or model.outputs != ("text",):
            raise NoKernelError(
                f"the graph leads from {sorted(model.inputs)} to {list(model.outputs)}; expected tokens and "
                "lengths to text"
            )
        self._constants = model.constants
        self._producers = {name: node for node in model.nodes for name in node.outputs if name}

    # ---- the parts, from the last to the first

    def text(self) -> RecurrentText:
        value, least_square = self._unit("text")
        value, projection, bias = self._linear(value)
        layer, over_time, width = self._pooled(value)
        found = self._layer(layer, over_time, projection, bias, least_square)
        if width != found.directions * found.hidden:
            raise NoKernelError(
                f"its states are made {width} values; expected {found.directions * found.hidden}"
            )
        if projection is not None and projection.shape[1] != width:
            raise NoKernelError(f"its linear layer takes {projection.shape[1]} values; expected {width}")
        return found

    def _unit(self, name: str) -> tuple[str, float | None]:
        """The product v * 1 / sqrt(max(v . v, least)), or v as it is."""
        node = self._node(name)
        if node is None or node.op != "Mul" or len(node.inputs) != 2:
            return name, None
        value = self._plain(node.inputs[0])
        root = self._expect(self._expect(node.inputs[1], "Reciprocal").inputs[0], "Sqrt")
        clip = self._expect(root.inputs[0], "Clip")
        least = self._constant(clip.inputs[1]) if len(clip.inputs) == 2 else None
        total = self._expect(clip.inputs[0], "ReduceSum")
        square = self._expect(total.inputs[0], "Mul")
        axes = self._constant(total.inputs[1]) if len(total.inputs) == 2 else None
        squared = [self._plain(factor) for factor in square.inputs]
        fits = least is not None and least.size == 1 and axes is not None and axes.tolist() in ([-1], [1])
        fits &= total.attributes.get("keepdims", 1) == 1 and squared == [value, value]
        if not fits:
            raise NoKernelError("its last product is no division by the Euclidean norm")
        assert least is not None
        return value, float(least.reshape(-1)[0])

    def _linear(self, name: str) -> tuple[str, Array | None, Array | None]:
        node = self._node(name)
        if node is None or node.op != "Gemm":
            return name, None, None
        wanted = {"transA": (0, 0), "transB": (0, 1), "alpha": (1.0, 1.0), "beta": (1.0, 1.0)}
        self._attributes(
            node, {key: wants for key, (_, wants) in wanted.items()}, {"transA": 0, "alpha": 1.0, "beta": 1.0}
        )
        weight = self._floats(node.inputs[1], 2)
        bias = self._floats(node.inputs[2], 1) if len(node.inputs) == 3 else np.zeros(len(weight), np.float32)
        if bias.shape != (len(weight),):
            raise NoKernelError(f"its linear layer adds {bias.shape}; expected {(len(weight),)}")
        return self._plain(node.inputs[0]), weight, bias

    def _pooled(self, name: str) -> tuple[Node, bool, int]:
        """The recurrent node, whether its maximum over time is taken, and the number of values."""
        node = self._node(name)
        if node is not None and node.op == "Reshape":
            turned = self._expect(node.inputs[0], "Transpose")
            self._attributes(turned, {"perm": [1, 0, 2]}, {})
            return self._recurrent(turned.inputs[0], 1), False, self._side_by_side(node.inputs[1])
        if node is not None and node.op == "ReduceMax":
            self._attributes(node, {"axes": [1], "keepdims": 0}, {"keepdims": 1})
            where = self._expect(node.inputs[0], "Where")
            layer, width, outputs = self._outputs(where.inputs[1])
            self._check_mask(where.inputs[0])
            fill = self._expect(where.inputs[2], "Expand")
            filled = self._constant(fill.inputs[0])
            whole = self._expect(fill.inputs[1], "Shape")
            fits = filled is not None and filled.size == 1 and float(filled.reshape(-1)[0]) <= _NEVER_WINS
            if not fits or self._plain(whole.inputs[0]) != outputs or whole.attributes.get("start", 0) != 0:
                raise NoKernelError("its maximum over time may be taken by something else than a step")
            return layer, True, width
        found = "a constant or an input" if node is None else f"the operator {node.op}"
        raise NoKernelError(
            f"{found} stands where its states are pooled; expected the last state or a maximum"
        )

    def _side_by_side(self, name: str) -> int:
        """The number of values of a shape with one row for each text, as a constant or put together."""
        shape = self._constant(name)
        if shape is not None and shape.size == 2 and shape[0] == -1:
            return int(shape[1])
        node = self._node(name)  # as PyTorch 2.8 writes it
        parts = node.inputs if node is not None and node.op == "Concat" else []
        width = self._constant(parts[1]) if len(parts) == 2 else None
        if width is None or width.size != 1 or not self._is_length(parts[0], "lengths", 0):
            raise NoKernelError("its last states are not laid side by side")
        return int(width.reshape(-1)[0])

    def _outputs(self, name: str) -> tuple[Node, int, str]:
        """All steps' outputs as (n, T, values): the recurrent node, the number of values and the name."""
        view = self._expect(name, "Reshape")
        turned = self._expect(view.inputs[0], "Transpose")
        self._attributes(turned, {"perm": [2, 0, 1, 3]}, {})
        parts = self._expect(view.inputs[1], "Concat").inputs
        width = self._constant(parts[-1])
        fits = len(parts) == 3 and width is not None and width.size == 1
        fits = fits and self._is_length(parts[0], "lengths", 0) and self._is_length(parts[1], "tokens", 1)
        if not fits:
            raise NoKernelError("its outputs are not laid out as one row for each text and step")
        assert width is not None
        return self._recurrent(turned.inputs[0], 0), int(width.reshape(-1)[0]), self._plain(name)

    def _check_mask(self, name: str) -> None:
        """Whether a position is below the length, for each text and step."""
        less = self._expect(self._unsqueezed(name, ([-1], [2])), "Less")
        positions = self._expect(self._unsqueezed(less.inputs[0], ([0],)), "Range")
        end = self._expect(positions.inputs[1], "Squeeze")
        first, step = self._constant(positions.inputs[0]), self._constant(positions.inputs[2])
        lengths = self._unsqueezed(self._whole(less.inputs[1]), ([1], [-1]))
        counts = first is not None and step is not None and (first.item(), step.item()) == (0, 1)
        if not counts or not self._is_length(end.inputs[0], "tokens", 1) or self._whole(lengths) != "lengths":
            raise NoKernelError("its maximum over time is not over the text's own steps")

    def _layer(
        self,
        node: Node,
        over_time: bool,
        projection: Array | None,
        projection_bias: Array | None,
        least_square: float | None,
    ) -> RecurrentText:
        gates = _GATES[node.op]
        direction = node.attributes.get("direction", "forward")
        directions = {"forward": 1, "bidirectional": 2}.get(direction, 0)
        if directions == 0:
            raise NoKernelError(f"its {node.op} runs {direction!r}; expected forward or bidirectional")
        known = {
            "hidden_size",
            "direction",
            "linear_before_reset",
            "layout",
            "input_forget",
            "activations",
            "clip",
        }
        defaults = {"layout": 0, "input_forget": 0}
        changed = {key for key, value in defaults.items() if node.attributes.get(key, value) != value}
        changed |= (set(node.attributes) - known) | ({"activations", "clip"} & set(node.attributes))
        if node.op == "GRU" and node.attributes.get("linear_before_reset", 0) != 1:
            changed.add("linear_before_reset")
        inputs = (*node.inputs, *[""] * (8 - len(node.inputs)))
        if changed or any(inputs[5:]) or self._whole(inputs[4]) != "lengths":
            raise NoKernelError(
                f"its {node.op} has {sorted(changed) or 'a first state, or other lengths than the text'}; "
                "expected the exporter's form"
            )
        words = self._words(inputs[0])
        weight, recurrence = self._floats(inputs[1], 3), self._floats(inputs[2], 3)
        hidden, width = recurrence.shape[2], words.shape[1]
        bias = (
            self._floats(inputs[3], 2)
            if inputs[3]
            else np.zeros((directions, 2 * gates * hidden), np.float32)
        )
        shapes = (weight.shape, recurrence.shape, bias.shape)
        expected = (
            (directions, gates * hidden, width),
            (directions, gates * hidden, hidden),
            (directions, 2 * gates * hidden),
        )
        if shapes != expected or min(hidden, width, len(words)) < 1:
            raise NoKernelError(f"its {node.op} has weights of {shapes}; expected {expected}")
        of_input, of_state = bias.reshape(directions, 2, gates, hidden).transpose(1, 0, 2, 3)
        added = of_input + of_state
        if node.op == "GRU":
            added[:, 2] = of_input[:, 2]
        return RecurrentText(
            node.op.lower(),
            words,
            weight.reshape(directions, gates, hidden, width),
            recurrence.reshape(directions, gates, hidden, hidden),
            added,
            of_state[:, 2].copy() if node.op == "GRU" else None,
            over_time,
            projection,
            projection_bias,
            least_square,
        )

    def _words(self, name: str) -> Array:
        turned = self._expect(name, "Transpose")
        self._attributes(turned, {"perm": [1, 0, 2]}, {})
        gather = self._expect(turned.inputs[0], "Gather")
        self._attributes(gather, {"axis": 0}, {"axis": 0})
        if self._whole(gather.inputs[1]) != "tokens":
            raise NoKernelError("its word vectors are not looked up by the tokens alone")
        return self._floats(gather.inputs[0], 2)

    # ---- nodes and constants

    def _recurrent(self, name: str, output: int) -> Node:
        node = self._node(name)
        if node is None or node.op not in _GATES:
            raise NoKernelError(
                f"{'nothing' if node is None else node.op} is what is pooled; expected a GRU or LSTM"
            )
        outputs = (*node.outputs, "", "")
        if outputs[output] != self._plain(name):
            raise NoKernelError(f"another output of its {node.op} is pooled than its hidden states")
        return node

    def _node(self, name: str) -> Node | None:
        """What makes a tensor, past conversions between float types."""
        node = self._producers.get(self._plain(name))
        if node is not None and node.domain not in ("", "ai.onnx"):
            raise NoKernelError(f"it has an operator of the domain {node.domain!r}")
        return node

    def _plain(self, name: str) -> str:
        """The tensor before conversions between float types: the kernel computes in float32 throughout."""
        while (
            (node := self._producers.get(name)) is not None
            and node.op == "Cast"
            and node.attributes.get("to") in _FLOATS
        ):
            name = node.inputs[0]
        return name

    def _whole(self, name: str) -> str:
        """The tensor before conversions between integer types."""
        while (
            (node := self._producers.get(name)) is not None
            and node.op == "Cast"
            and node.attributes.get("to") in (6, 7)
        ):
            name = node.inputs[0]
        return name

    def _expect(self, name: str, op: str) -> Node:
        node = self._node(name)
        if node is None or node.op != op:
            found = "a constant or an input" if node is None else f"the operator {node.op}"
            raise NoKernelError(f"{found} makes {name!r}; expected {op}")
        return node

    def _attributes(self, node: Node, wanted: dict[str, Any], defaults: dict[str, Any]) -> None:
        for key, value in wanted.items():
            found = node.attributes.get(key, defaults.get(key))
            if found != value:
                raise NoKernelError(f"its {node.op} has {key} {found!r}; expected {value!r}")

    def _unsqueezed(self, name: str, axes: tuple[list[int], ...]) -> str:
        node = self._expect(name, "Unsqueeze")
        found = self._constant(node.inputs[1]) if len(node.inputs) == 2 else None
        if found is None or found.tolist() not in axes:
            raise NoKernelError(f"{name!r} has a new axis elsewhere than at {axes[0]}")
        return node.inputs[0]

    def _is_length(self, name: str, of: str, axis: int) -> bool:
        """Whether a tensor is the length of one axis of an input."""
        node = self._node(name)
        if node is None or node.op != "Shape" or node.inputs[0] != of:
            return False
        return (node.attributes.get("start", 0), node.attributes.get("end")) == (axis, axis + 1)

    def _constant(self, name: str) -> Array | None:
        return self._constants.get(name)

    def _floats(self, name: str, axes: int) -> Array:
        found = self._constants.get(self._plain(name))
        if found is None or found.dtype.kind != "f" or found.ndim != axes:
            raise NoKernelError(f"{name!r} is no constant of {axes} axes")
        return np.ascontiguousarray(found, np.float32)
