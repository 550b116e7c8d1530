"""Shapes of the operators that move, repeat, cut and join elements, or make them from a size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cir_infer.bundle.limits.values import INT64, KEPT, Shape, Step, Value, broadcast, dtype_of
from cir_infer.bundle.onnx_model import Array

__all__ = ["MOVEMENTS"]


def _reshape(step: Step) -> list[Value]:
    value = step.value()
    wanted = step.whole(1)
    shape: list[int] = []
    for axis, length in enumerate(wanted):
        if length == 0 and not step.number("allowzero", 0):
            if axis >= len(value.shape):
                step.refuse("it keeps an axis that is not there")
            length = value.shape[axis]
        shape.append(length)
    if shape.count(-1) > 1 or min(shape, default=0) < -1:
        step.refuse(f"it asks for the shape {shape}")
    if -1 in shape:
        others = math.prod(length for length in shape if length != -1)
        if others == 0 or value.count % others:
            step.refuse(f"{value.count} elements do not fit the shape {shape}")
        shape[shape.index(-1)] = value.count // others
    if math.prod(shape) != value.count:
        step.refuse(f"{value.count} elements do not fit the shape {shape}")
    return [_moved(value, tuple(shape))]


def _moved(value: Value, shape: Shape) -> Value:
    return Value(value.kind, shape, None if value.data is None else value.data.reshape(shape))


def _flatten(step: Step) -> list[Value]:
    value = step.value()
    rank = len(value.shape)
    axis = step.number("axis", 1)
    if not -rank <= axis <= rank:
        step.refuse(f"axis {axis} of a tensor of {rank}")
    axis = axis + rank if axis < 0 else axis
    return [_moved(value, (math.prod(value.shape[:axis]), math.prod(value.shape[axis:])))]


def _squeeze(step: Step) -> list[Value]:
    value = step.value()
    given = step.whole(1) if step.has(1) else step.numbers("axes", [])
    rank = len(value.shape)
    axes = step.axes(given, rank) if given else [a for a in range(rank) if value.shape[a] == 1]
    if any(value.shape[axis] != 1 for axis in axes):
        step.refuse(f"it drops axes {axes} of {list(value.shape)}")
    return [_moved(value, tuple(n for axis, n in enumerate(value.shape) if axis not in axes))]


def _unsqueeze(step: Step) -> list[Value]:
    value = step.value()
    given = step.whole(1) if step.has(1) else step.numbers("axes", [])
    rank = len(value.shape) + len(given)
    axes = step.axes(given, rank)
    rest = iter(value.shape)
    return [_moved(value, tuple(1 if axis in axes else next(rest) for axis in range(rank)))]


def _transpose(step: Step) -> list[Value]:
    value = step.value()
    rank = len(value.shape)
    order = step.numbers("perm", range(rank)[::-1])
    if sorted(order) != list(range(rank)):
        step.refuse(f"it permutes {rank} axes by {order}")
    data = None if value.data is None else value.data.transpose(order)
    return [Value(value.kind, tuple(value.shape[axis] for axis in order), data)]


def _concat(step: Step) -> list[Value]:
    values = [step.value(place) for place in range(max(1, len(step.inputs)))]
    shape = list(values[0].shape)
    axis = step.axis(step.number("axis", 0), len(shape))
    for value in values[1:]:
        if len(value.shape) != len(shape) or any(
            a != b for place, (a, b) in enumerate(zip(value.shape, shape, strict=True)) if place != axis
        ):
            step.refuse("what it joins does not fit each other")
    shape[axis] = sum(value.shape[axis] for value in values)
    arrays = [value.data for value in values if value.data is not None]
    small = math.prod(shape) <= KEPT and len(arrays) == len(values)
    return [Value(values[0].kind, tuple(shape), np.concatenate(arrays, axis) if small else None)]


def _split(step: Step) -> list[Value]:
    value = step.value()
    axis = step.axis(step.number("axis", 0), len(value.shape))
    length, parts = value.shape[axis], len(step.node.outputs)
    sizes = step.whole(1) if step.has(1) else step.numbers("split", [])
    if not sizes:
        share = -(-length // parts)
        sizes = [max(0, min(share, length - share * part)) for part in range(parts)]
    if len(sizes) != parts or sum(sizes) != length or min(sizes) < 0:
        step.refuse(f"it splits {length} into {sizes}")
    arrays: Sequence[Array | None] = [None] * parts
    if value.data is not None:
        arrays = np.split(value.data, np.cumsum(sizes)[:-1], axis)
    shapes = [(*value.shape[:axis], size, *value.shape[axis + 1 :]) for size in sizes]
    return [Value(value.kind, shape, data) for shape, data in zip(shapes, arrays, strict=True)]


def _slice(step: Step) -> list[Value]:
    value = step.value()
    rank = len(value.shape)
    if step.has(1):
        if any(step.has(place) and step.value(place).data is None for place in (1, 2, 3, 4)):
            return [Value(value.kind, value.shape)]  # no part is larger than the whole
        starts, ends = step.whole(1), step.whole(2)
        axes = step.whole(3) if step.has(3) else list(range(len(starts)))
        steps = step.whole(4) if step.has(4) else [1] * len(starts)
    else:
        starts, ends = step.numbers("starts", []), step.numbers("ends", [])
        axes, steps = step.numbers("axes", range(len(starts))), [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        step.refuse("its starts, ends, axes and steps do not fit each other")
    cut = [slice(None)] * rank
    for start, end, axis, stride in zip(starts, ends, step.axes(axes, rank), steps, strict=True):
        cut[axis] = slice(start, None if stride < 0 and end < -value.shape[axis] else end, stride)
    shape = tuple(len(range(n)[part]) for n, part in zip(value.shape, cut, strict=True))
    return [Value(value.kind, shape, None if value.data is None else value.data[tuple(cut)])]


def _gather(step: Step) -> list[Value]:
    value, places = step.value(), step.value(1)
    axis = step.axis(step.number("axis", 0), len(value.shape))
    shape = (*value.shape[:axis], *places.shape, *value.shape[axis + 1 :])
    data = None
    if value.data is not None and places.data is not None and math.prod(shape) <= KEPT:
        if (
            places.data.size
            and not -value.shape[axis] <= places.data.min() <= places.data.max() < value.shape[axis]
        ):
            step.refuse("it takes what is not there")
        data = np.take(value.data, places.data.astype(np.int64), axis)
    return [Value(value.kind, shape, data)]


def _gather_nd(step: Step) -> list[Value]:
    value, places = step.shape(), step.shape(1)
    shared = step.number("batch_dims", 0)
    if not places or not 0 <= shared < len(places) or not 0 <= places[-1] + shared <= len(value):
        step.refuse("its indices do not fit")
    return [Value(step.value().kind, (*places[:-1], *value[shared + places[-1] :]))]


def _expand(step: Step) -> list[Value]:
    value = step.value()
    wanted = tuple(step.whole(1))
    if min(wanted, default=0) < 0:
        step.refuse(f"it expands to {list(wanted)}")
    shape = broadcast(step, [value.shape, wanted])
    small = value.data is not None and math.prod(shape) <= KEPT
    return [
        Value(
            value.kind,
            shape,
            np.broadcast_to(value.data, shape) if small and value.data is not None else None,
        )
    ]


def _tile(step: Step) -> list[Value]:
    value, repeats = step.value(), step.whole(1)
    if len(repeats) != len(value.shape) or min(repeats, default=0) < 0:
        step.refuse(f"it repeats {list(value.shape)} by {repeats}")
    return [Value(value.kind, tuple(n * r for n, r in zip(value.shape, repeats, strict=True)))]


def _pad(step: Step) -> list[Value]:
    value = step.value()
    rank = len(value.shape)
    pads = step.whole(1) if step.has(1) else step.numbers("pads", [])
    axes = step.axes(step.whole(3) if step.has(3) else range(rank), rank)
    if len(pads) != 2 * len(axes):
        step.refuse(f"it pads {rank} axes by {len(pads)} numbers")
    shape = list(value.shape)
    for place, axis in enumerate(axes):
        shape[axis] = max(0, shape[axis] + pads[place] + pads[place + len(axes)])
    return [Value(value.kind, tuple(shape))]


def _constant_of_shape(step: Step) -> list[Value]:
    shape = tuple(step.whole(0))
    given = step.node.attributes.get("value", np.zeros(1, np.float32))
    if not isinstance(given, np.ndarray) or given.size != 1:
        step.refuse("its value is of a type that is not read")
    kind = Value.of(given).kind
    if min(shape, default=0) < 0:
        step.refuse(f"it makes the shape {list(shape)}")
    small = math.prod(shape) <= KEPT
    return [Value(kind, shape, np.full(shape, given.reshape(-1)[0]) if small else None)]


def _range(step: Step) -> list[Value]:
    start, limit, delta = (float(step.data(place).reshape(-1)[0]) for place in range(3))
    if delta == 0 or not all(map(math.isfinite, (start, limit, delta))):
        step.refuse("it counts without an end")
    length = max(0, math.ceil((limit - start) / delta))
    kind = step.value().kind
    data = (start + delta * np.arange(length)).astype(dtype_of(kind)) if length <= KEPT else None
    return [Value(kind, (length,), data)]


def _one_hot(step: Step) -> list[Value]:
    shape = list(step.shape())
    depth = step.whole(1)
    axis = step.axis(step.number("axis", -1), len(shape) + 1)
    shape.insert(axis, depth[0] if depth else 0)
    return [Value(step.value(2).kind, tuple(shape))]


def _top_k(step: Step) -> list[Value]:
    shape = list(step.shape())
    axis = step.axis(step.number("axis", -1), len(shape))
    shape[axis] = min(shape[axis], step.whole(1)[0] if step.has(1) else step.number("k", 0))
    step.work += 64 * step.value().count
    return [Value(step.value().kind, tuple(shape)), Value(INT64, tuple(shape))]


def _depth_space(step: Step) -> list[Value]:
    n, c, *sides = step.shape()
    block = step.number("blocksize", 0)
    if block < 1 or len(sides) != 2:
        step.refuse(f"its blocksize is {block}")
    if step.node.op == "DepthToSpace":
        shape = (n, c // block**2, sides[0] * block, sides[1] * block)
    else:
        shape = (n, c * block**2, sides[0] // block, sides[1] // block)
    return [Value(step.value().kind, shape)]


def _resize(step: Step) -> list[Value]:
    value = step.value()
    rank = len(value.shape)
    # Upsample and Resize of opset 10 have the scales where Resize has its region of interest.
    late = step.node.op == "Resize" and step.opset >= 11
    axes = step.axes(step.numbers("axes", range(rank)), rank)
    shape = list(value.shape)
    if late and step.has(3) and step.value(3).count:
        sizes = step.whole(3)
    else:
        place = 2 if late else 1
        scales = (
            step.data(place).reshape(-1).tolist()
            if step.has(place)
            else step.attribute("scales", [1.0] * rank)
        )
        if len(scales) != len(axes) or not all(0 < scale < 1e6 for scale in scales):
            step.refuse(f"it scales {rank} axes by {scales}")
        sizes = [math.floor(value.shape[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
    if len(sizes) != len(axes) or min(sizes, default=0) < 0:
        step.refuse(f"it resizes {rank} axes to {sizes}")
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    step.work += 64 * (math.prod(shape) + value.count)
    return [Value(value.kind, tuple(shape))]


def _grid_sample(step: Step) -> list[Value]:
    value, grid = step.shape(), step.shape(1)
    if len(value) < 3 or len(grid) != len(value):
        step.refuse("its grid does not fit")
    shape = (*value[:2], *grid[1:-1])
    step.work += 64 * math.prod(shape)
    return [Value(step.value().kind, shape)]


MOVEMENTS: dict[str, Callable[[Step], list[Value]]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GridSample": _grid_sample,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Resize": _resize,
    "Slice": _slice,
    "SpaceToDepth": _depth_space,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
