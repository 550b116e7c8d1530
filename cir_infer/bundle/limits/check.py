"""Follows a graph from its inputs to its outputs: which operators, how much memory, how much work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cir_infer.bundle.limits.crashes import check_survivable
from cir_infer.bundle.limits.operators import OPERATORS
from cir_infer.bundle.limits.values import ITEM_BYTES, Shape, Step, TooLargeError, UnclearError, Value
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import Input, Node, OnnxModel, read_onnx_model
from cir_infer.errors import BundleError, shown

__all__ = ["check_graph"]

MOST_NODES = 20_000
MEMORY = 256 << 20
MEMORY_PER_ITEM = 128 << 20
"""Bytes of all tensors that are there at once: for a graph, and for each image or text of a batch."""

WORK_PER_ITEM = 2e10
WORK_PER_BYTE = 1e5
"""Multiplications for each image or text of a batch, and more for each byte of a graph: a weight is used at
most at every place of a picture. An element that is not multiplied counts as `_ELEMENT`."""

_ELEMENT = 32
_NODE = 10_000
_MANY = 64
"""Items of the batch that shows how a graph grows."""

_DOMAINS = ("", "ai.onnx")


@dataclass
class _Cost:
    memory: float = 0.0
    work: float = 0.0


def check_graph(
    model: Model, inputs: Mapping[str, tuple[int | None, ...]], longest: int | None = None
) -> None:
    """Refuse a graph that holds what no bundle needs, or takes more than the limits above.

    Args:
        model: the graph, see `check_self_contained` for what it must not name.
        inputs: lengths of axes by input name, where a bundle says them: None for the batch.
        longest: of the other axes that the graph leaves open: the tokens of a text; None where none may be.

    Raises:
        BundleError: it is refused; the message says which node and why.
    """
    graph = read_onnx_model(model.data, model.weights)
    _check_operators(graph)
    one = _follow(graph, inputs, longest, 1)
    kept = 8 * model.stored + MEMORY
    _limit("memory", "bytes", one.memory, kept + MEMORY_PER_ITEM)
    _limit("work", "multiplications", one.work, WORK_PER_ITEM + WORK_PER_BYTE * model.stored)
    many = _follow(graph, inputs, longest, _MANY)
    # Twice the share of one is more than any batch takes that is as long as its items together. What one may
    # take beyond its own share is the graph's, once, and not again for each of the others.
    share = min(2 * one.memory, MEMORY_PER_ITEM)
    _limit("memory for a batch of 64", "bytes", many.memory, _MANY * share + kept)
    _limit("work for a batch of 64", "multiplications", many.work, _MANY * 2 * one.work + WORK_PER_ITEM)


def _limit(what: str, unit: str, found: float, most: float) -> None:
    if found > most:
        raise BundleError(
            f"it takes too much {what}: about {found:,.0f} {unit}; at most {most:,.0f} are allowed for its "
            "size, see docs/inputs.md"
        )


def _check_operators(graph: OnnxModel) -> None:
    if len(graph.nodes) > MOST_NODES:
        raise BundleError(f"it has {len(graph.nodes):,} nodes; expected at most {MOST_NODES:,}")
    for node in graph.nodes:
        if node.op not in OPERATORS or node.domain not in _DOMAINS:
            name = shown(f"{node.domain}.{node.op}".lstrip("."), 60)
            raise BundleError(
                f"it has an operator {name}; expected plain standard operators: no control flow, functions, "
                "sequences, chance, nor sizes that depend on values"
            )
    made = Counter(name for node in graph.nodes if node.op != "Constant" for name in node.outputs if name)
    made.update({*graph.constants, *graph.inputs})
    twice = next((name for name, times in made.items() if times > 1), None)
    if twice is not None:
        raise BundleError(f"two of its nodes make {shown(twice, 60)}")


def _follow(
    graph: OnnxModel, given: Mapping[str, tuple[int | None, ...]], longest: int | None, items: int
) -> _Cost:
    values: dict[str, Value] = {name: Value.of(array) for name, array in graph.constants.items()}
    for declared in graph.declared:
        if declared.name not in values:
            values[declared.name] = _input(declared, given.get(declared.name), longest, items)
    uses = Counter(name for node in graph.nodes for name in node.inputs if name)
    uses.update(graph.outputs)
    cost = _Cost()
    live = 0
    for node in graph.nodes:
        step = _step(node, values, graph.opset)
        outputs = _made(step)
        fixed = all(value is None or value.fixed for value in step.inputs)
        # Of a table that the graph holds, only what is taken from it moves.
        read = (value for value in step.inputs if value is not None and not value.fixed)
        moved = max((value.count for value in (*outputs, *read)), default=0)
        cost.work += _NODE + _ELEMENT * moved + step.work
        for name, value in zip(node.outputs, outputs, strict=False):
            if name:
                values[name] = Value(value.kind, value.shape, value.data, fixed)
                live += value.bytes
        cost.memory = max(cost.memory, live + step.scratch)
        for name in set(node.inputs):
            uses[name] -= sum(other == name for other in node.inputs)
            if name and uses[name] == 0 and not values[name].fixed:
                live -= values[name].bytes
        for name in node.outputs:
            if name and not uses[name] and not values[name].fixed:
                live -= values[name].bytes
    return cost


def _step(node: Node, values: Mapping[str, Value], opset: int) -> Step:
    missing = next((name for name in node.inputs if name and name not in values), None)
    if missing is not None:
        raise _wrong(node, f"nothing before it makes {shown(missing, 60)}")
    return Step(node, [values[name] if name else None for name in node.inputs], opset)


def _made(step: Step) -> list[Value]:
    try:
        check_survivable(step)
        # What a graph has no number for is infinite or NaN there, too: float16's mask of a text encoder.
        with np.errstate(all="ignore"):
            return OPERATORS[step.node.op](step)
    except TooLargeError as error:
        raise _wrong(step.node, f"it makes {error}, larger than any that a bundle needs") from error
    except UnclearError as error:
        raise _wrong(step.node, str(error)) from error
    except (ValueError, TypeError, IndexError, OverflowError, ArithmeticError) as error:
        raise _wrong(step.node, f"its inputs do not fit ({shown(error, 80)})") from error


def _wrong(node: Node, reason: str) -> BundleError:
    output = next(iter(node.outputs), "")
    return BundleError(f"its {shown(node.op, 40)} that makes {shown(output, 60)} cannot be used: {reason}")


def _input(declared: Input, given: tuple[int | None, ...] | None, longest: int | None, items: int) -> Value:
    if declared.shape is None or declared.kind not in ITEM_BYTES:
        raise BundleError(f"its input {shown(declared.name, 60)} has no shape or type that a bundle's has")
    shape: list[int] = []
    for axis, length in enumerate(declared.shape):
        # Where the graph has other axes than it should, nothing is known of them.
        known = given[axis] if given is not None and len(given) == len(declared.shape) else None
        known = length if length is not None and axis else known
        if axis == 0:
            known = items
        elif known is None:
            known = longest
        if known is None:
            raise BundleError(f"its input {shown(declared.name, 60)} leaves the length of axis {axis} open")
        shape.append(known)
    lengths: Shape = tuple(shape)
    try:
        return Value(declared.kind, lengths)
    except TooLargeError as error:
        raise BundleError(f"its input {shown(declared.name, 60)} is {error}") from error
