"""Shapes and work of operators that multiply and add: products, convolutions, pooling, recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from cir_infer.bundle.limits.values import INT32, INT64, Shape, Step, Value, broadcast

__all__ = ["PRODUCTS"]


def _matmul(step: Step, first: int = 0, second: int = 1, kind: int | None = None) -> list[Value]:
    a, b = step.shape(first), step.shape(second)
    if not a or not b:
        step.refuse("it multiplies a number")
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        step.refuse(f"{list(a)} by {list(b)} is no product")
    shape = (
        [*broadcast(step, [left[:-2], right[:-2]]), left[-2], right[-1]]
        if max(len(left), len(right)) > 2
        else [
            left[-2],
            right[-1],
        ]
    )
    step.work += math.prod(shape) * left[-1]
    if len(b) == 1:
        shape.pop()
    if len(a) == 1:
        del shape[-1 if len(b) == 1 else -2]
    return [Value(step.value(first).kind if kind is None else kind, tuple(shape))]


def _matmul_integer(step: Step) -> list[Value]:
    return _matmul(step, kind=INT32)


def _qlinear_matmul(step: Step) -> list[Value]:
    return _matmul(step, 0, 3, step.value(7).kind)


def _gemm(step: Step) -> list[Value]:
    a, b = step.shape(0), step.shape(1)
    if len(a) != 2 or len(b) != 2:
        step.refuse("it multiplies what are no matrices")
    a = a[::-1] if step.number("transA", 0) else a
    b = b[::-1] if step.number("transB", 0) else b
    if a[1] != b[0]:
        step.refuse(f"{list(a)} by {list(b)} is no product")
    step.work += a[0] * a[1] * b[1]
    return [Value(step.value().kind, (a[0], b[1]))]


def _einsum(step: Step) -> list[Value]:
    equation = step.attribute("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if (
        not arrow
        or len(terms) != len(step.inputs)
        or not all(term.isalpha() or not term for term in (*terms, right))
    ):
        step.refuse("its equation is not spelled out")
    lengths: dict[str, int] = {}
    for place, term in enumerate(terms):
        shape = step.shape(place)
        if len(shape) != len(term):
            step.refuse("its equation does not fit")
        for letter, length in zip(term, shape, strict=True):
            if lengths.setdefault(letter, length) not in (length, 1) and length != 1:
                step.refuse("its equation does not fit")
            lengths[letter] = max(lengths[letter], length)
    if not set(right) <= set(lengths):
        step.refuse("its equation does not fit")
    step.work += math.prod(lengths.values()) * len(terms)
    step.scratch = 4 * max(
        math.prod(lengths.values()) if len(terms) > 2 else 0,
        *(step.value(p).count for p in range(len(terms))),
    )
    return [Value(step.value().kind, tuple(lengths[letter] for letter in right))]


def _windows(step: Step, sides: Sequence[int], kernel: Sequence[int], dilated: bool = True) -> list[int]:
    """How often a window fits along each side."""
    rank = len(sides)
    strides = step.numbers("strides", [1] * rank)
    dilations = step.numbers("dilations", [1] * rank) if dilated else [1] * rank
    pads = step.numbers("pads", [0] * (2 * rank))
    same = step.attribute("auto_pad", "NOTSET")
    if len(kernel) != rank or not len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        step.refuse("its sides do not fit each other")
    if min([*strides, *dilations, *kernel], default=1) < 1 or min(pads, default=0) < 0:
        step.refuse("a stride, dilation, kernel or border is not positive")
    out = []
    for axis, side in enumerate(sides):
        if same.startswith("SAME"):
            out.append(-(-side // strides[axis]))
            continue
        border = 0 if same == "VALID" else pads[axis] + pads[axis + rank]
        if border > 2 * side + 2 * kernel[axis] * dilations[axis]:
            step.refuse(f"it adds a border of {border} to a side of {side}")
        room = side + border - (dilations[axis] * (kernel[axis] - 1) + 1)
        up = step.number("ceil_mode", 0)
        out.append(max(0, (-(-room // strides[axis]) if up else room // strides[axis]) + 1))
    return out


def _conv(step: Step, weights: int = 1, kind: int | None = None) -> list[Value]:
    image, kernel = step.shape(), step.shape(weights)
    if len(image) < 3 or len(kernel) != len(image):
        step.refuse("its image and weights do not fit")
    groups = step.number("group", 1)
    if groups < 1 or kernel[1] * groups != image[1] or kernel[0] % groups:
        step.refuse("its channels do not fit")
    shape = (image[0], kernel[0], *_windows(step, image[2:], kernel[2:]))
    step.work += math.prod(shape) * math.prod(kernel[1:])
    # Where a window is laid out for a product, an image at a time.
    step.scratch = 4 * kernel[1] * math.prod(kernel[2:]) * math.prod(shape[2:])
    return [Value(step.value().kind if kind is None else kind, shape)]


def _conv_integer(step: Step) -> list[Value]:
    return _conv(step, kind=INT32)


def _qlinear_conv(step: Step) -> list[Value]:
    return _conv(step, 3, step.value(7).kind)


def _conv_transpose(step: Step) -> list[Value]:
    image, kernel = step.shape(), step.shape(1)
    rank = len(image) - 2
    if rank < 1 or len(kernel) != len(image) or kernel[0] != image[1]:
        step.refuse("its image and weights do not fit")
    groups = step.number("group", 1)
    strides = step.numbers("strides", [1] * rank)
    dilations = step.numbers("dilations", [1] * rank)
    more = step.numbers("output_padding", [0] * rank)
    asked = step.numbers("output_shape", [])
    if groups < 1 or not len(strides) == len(dilations) == len(more) == rank or min(strides + dilations) < 1:
        step.refuse("its sides do not fit each other")
    # Borders only take away.
    sides = [
        strides[axis] * (image[2 + axis] - 1) + more[axis] + (kernel[2 + axis] - 1) * dilations[axis] + 1
        for axis in range(rank)
    ]
    if asked:
        sides = (
            [max(pair) for pair in zip(sides, asked[-rank:], strict=True)] if len(asked) >= rank else asked
        )
    shape = (image[0], kernel[1] * groups, *sides)
    step.work += math.prod(image) * math.prod(kernel[1:])
    step.scratch = 4 * kernel[1] * math.prod(kernel[2:]) * math.prod(image[2:])
    return [Value(step.value().kind, shape)]


def _pool(step: Step) -> list[Value]:
    image = step.shape()
    kernel = step.numbers("kernel_shape", [])
    if len(image) < 3:
        step.refuse("its image has no sides")
    shape = (*image[:2], *_windows(step, image[2:], kernel))
    step.work += math.prod(shape) * math.prod(kernel)
    return [Value(step.value().kind, shape), Value(INT64, shape)][: max(1, len(step.node.outputs))]


def _global_pool(step: Step) -> list[Value]:
    image = step.shape()
    return [Value(step.value().kind, (*image[:2], *[1] * (len(image) - 2)))]


def _recurrent(gates: int) -> Callable[[Step], list[Value]]:
    def rule(step: Step) -> list[Value]:
        sequence, weights, recurrent = step.shape(), step.shape(1), step.shape(2)
        if not len(sequence) == len(weights) == len(recurrent) == 3 or weights[1] != gates * recurrent[2]:
            step.refuse("its weights do not fit each other")
        batch_first = step.number("layout", 0)
        steps, batch = (sequence[1], sequence[0]) if batch_first else sequence[:2]
        directions, hidden = weights[0], recurrent[2]
        kind = step.value().kind
        each = (directions, batch, hidden)
        step.work += steps * batch * directions * weights[1] * (weights[2] + hidden)
        step.scratch = 4 * steps * batch * directions * weights[1]
        if batch_first:
            each = (batch, directions, hidden)
        whole: Shape = (batch, steps, *each[1:]) if batch_first else (steps, *each)
        outputs = [Value(kind, whole), Value(kind, each), Value(kind, each)]
        return outputs[: 3 if step.node.op == "LSTM" else 2]

    return rule


PRODUCTS: dict[str, Callable[[Step], list[Value]]] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvInteger": _conv_integer,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "GRU": _recurrent(3),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "GlobalLpPool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "LSTM": _recurrent(4),
    "LpPool": _pool,
    "MatMul": _matmul,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _pool,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "RNN": _recurrent(1),
}
