"""Shapes, work and memory of the standard operators, one rule for each kind.

What is not here is refused: control flow and functions, chance (`Random...`, `Dropout` in training),
sequences, optionals, texts, trees, and sizes that only running it tells (`NonZero`, `Unique`, `Compress`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cir_infer.bundle.limits.movements import MOVEMENTS
from cir_infer.bundle.limits.products import PRODUCTS
from cir_infer.bundle.limits.values import (
    BOOL,
    FLOAT,
    INT64,
    KEPT,
    UINT8,
    Step,
    Value,
    broadcast,
    dtype_of,
)
from cir_infer.bundle.onnx_model import Array

__all__ = ["OPERATORS"]

Rule = Callable[[Step], list[Value]]


def _named(words: str) -> list[str]:
    return words.split()


def _same(step: Step) -> list[Value]:
    return [Value(step.value().kind, step.shape())] * max(1, len(step.node.outputs))


def _same_shape_as(place: int, kind: int | None = None) -> Rule:
    def rule(step: Step) -> list[Value]:
        return [Value(step.value().kind if kind is None else kind, step.shape(place))]

    return rule


_UNARY: dict[str, Callable[[Array], Array] | None] = {
    "Abs": np.abs,
    "Ceil": np.ceil,
    "Floor": np.floor,
    "Identity": np.array,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Round": np.round,
    "Sign": np.sign,
    "Sqrt": np.sqrt,
    **dict.fromkeys(
        _named(
            "Acos Acosh Asin Asinh Atan Atanh BitwiseNot Celu Cos Cosh Elu Erf Exp Gelu "
            "HardSigmoid HardSwish LeakyRelu Log Mish Reciprocal Relu Selu Shrink Sigmoid Sin "
            "Sinh Softplus Softsign Swish Tan Tanh ThresholdedRelu"
        )
    ),
}


def _unary(step: Step) -> list[Value]:
    value = step.value()
    compute = _UNARY[step.node.op]
    data = None if value.data is None or compute is None else compute(value.data).astype(value.data.dtype)
    return [Value(value.kind, value.shape, data)]


_BINARY: dict[str, Callable[[Array, Array], Array] | None] = {
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mod": np.mod,
    "Mul": np.multiply,
    "Sub": np.subtract,
    "Sum": np.add,
    **dict.fromkeys(_named("BitShift BitwiseAnd BitwiseOr BitwiseXor Mean PRelu Pow")),
}
_COMPARING: dict[str, Callable[[Array, Array], Array] | None] = {
    "And": np.logical_and,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}


def _elementwise(step: Step) -> list[Value]:
    values = [step.value(place) for place in range(max(1, len(step.inputs)))]
    shape = broadcast(step, [value.shape for value in values])
    op = step.node.op
    compute = _BINARY[op] if op in _BINARY else _COMPARING[op]
    kind = values[0].kind if op in _BINARY else BOOL
    arrays = [value.data for value in values]
    data: Array | None = None
    if compute is not None and math.prod(shape) <= KEPT and all(array is not None for array in arrays):
        if op == "Div" and values[0].kind != FLOAT:
            data = _truncated(arrays)
        else:
            data = arrays[0]
            for other in arrays[1:]:
                assert data is not None
                assert other is not None
                data = compute(data, other)
        if data is not None:
            data = data.astype(dtype_of(kind))
    return [Value(kind, shape, data)]


def _truncated(arrays: Sequence[Array | None]) -> Array | None:
    """Whole numbers are divided as in C."""
    dividend, divisor = arrays[0], arrays[1]
    assert dividend is not None
    assert divisor is not None
    return None if (divisor == 0).any() else np.trunc(dividend / divisor)


def _where(step: Step) -> list[Value]:
    values = [step.value(place) for place in range(3)]
    shape = broadcast(step, [value.shape for value in values])
    arrays = [value.data for value in values]
    data = None
    if math.prod(shape) <= KEPT and all(array is not None for array in arrays):
        data = np.where(*(array for array in arrays if array is not None))
    return [Value(values[1].kind, shape, data)]


def _cast(step: Step) -> list[Value]:
    value = step.value()
    kind = step.value(1).kind if step.node.op == "CastLike" else step.number("to", 0)
    if kind not in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16):
        step.refuse(f"it casts to type {kind}")
    data = None if value.data is None else value.data.astype(dtype_of(kind))
    return [Value(kind, value.shape, data)]


def _shape_of(step: Step) -> list[Value]:
    shape = step.shape()
    if step.node.op == "Size":
        return [Value(INT64, (), np.array(math.prod(shape), np.int64))]
    end = step.node.attributes.get("end")
    part = shape[slice(step.number("start", 0), end if isinstance(end, int) else None)]
    return [Value(INT64, (len(part),), np.array(part, np.int64))]


def _constant(step: Step) -> list[Value]:
    given = step.node.attributes
    if len(given) != 1:
        step.refuse("it has not one value")
    name, value = next(iter(given.items()))
    if name == "value" and isinstance(value, np.ndarray):
        return [Value.of(value)]
    kinds = {
        "value_int": np.int64,
        "value_ints": np.int64,
        "value_float": np.float32,
        "value_floats": np.float32,
    }
    if name not in kinds or value is None:
        step.refuse("its value is of a type that is not read")
    return [Value.of(np.array(value, kinds[name]))]


def _reduction(step: Step) -> list[Value]:
    value = step.value()
    rank = len(value.shape)
    given = step.whole(1) if step.has(1) else step.numbers("axes", [])
    if not given and step.number("noop_with_empty_axes", 0):
        return [Value(value.kind, value.shape)]
    axes = step.axes(given or range(rank), rank)
    keep = step.number("keepdims", 1)
    shape = tuple(
        1 if axis in axes else length for axis, length in enumerate(value.shape) if keep or axis not in axes
    )
    computed: dict[str, Callable[..., Array]] = {
        "ReduceMax": np.max,
        "ReduceMin": np.min,
        "ReduceProd": np.prod,
        "ReduceSum": np.sum,
    }
    compute: Callable[..., Array] | None = computed.get(step.node.op)
    data = None
    if compute is not None and value.data is not None and value.data.size:
        data = np.asarray(compute(value.data, axis=tuple(axes), keepdims=bool(keep))).astype(value.data.dtype)
    return [Value(value.kind, shape, data)]


def _arg(step: Step) -> list[Value]:
    shape = list(step.shape())
    axis = step.axis(step.number("axis", 0), len(shape))
    shape[axis : axis + 1] = [1] if step.number("keepdims", 1) else []
    return [Value(INT64, tuple(shape))]


def _normalisation(step: Step) -> list[Value]:
    value = step.value()
    if step.number("training_mode", 0):
        step.refuse("it is in training")
    return [Value(value.kind, value.shape)] * max(1, len(step.node.outputs))


def _dropout(step: Step) -> list[Value]:
    if step.has(2) and step.data(2).any():
        step.refuse("it is in training")
    value = step.value()
    return [Value(value.kind, value.shape), Value(BOOL, value.shape)]


def _quantize(step: Step) -> list[Value]:
    return [Value(step.value(2).kind if step.has(2) else UINT8, step.shape())]


def _dynamic_quantize(step: Step) -> list[Value]:
    return [Value(UINT8, step.shape()), Value(FLOAT, ()), Value(UINT8, ())]


OPERATORS: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys((*_BINARY, *_COMPARING), _elementwise),
    **dict.fromkeys(
        _named(
            "Clip CumSum Hardmax LRN LogSoftmax LpNormalization MeanVarianceNormalization "
            "ReverseSequence Scatter ScatterElements ScatterND Softmax Trilu"
        ),
        _same,
    ),
    **dict.fromkeys(
        _named(
            "BatchNormalization GroupNormalization InstanceNormalization LayerNormalization RMSNormalization"
        ),
        _normalisation,
    ),
    **dict.fromkeys(
        _named(
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
            "ReduceProd ReduceSum ReduceSumSquare"
        ),
        _reduction,
    ),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Cast": _cast,
    "CastLike": _cast,
    "Constant": _constant,
    "DequantizeLinear": _same_shape_as(0, FLOAT),
    "Dropout": _dropout,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "EyeLike": _same,
    "GatherElements": _same_shape_as(1),
    "IsInf": _same_shape_as(0, BOOL),
    "IsNaN": _same_shape_as(0, BOOL),
    "QuantizeLinear": _quantize,
    "Shape": _shape_of,
    "Size": _shape_of,
    "Where": _where,
    **MOVEMENTS,
    **PRODUCTS,
}
