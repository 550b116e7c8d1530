"""Weights under the names of others: prefixes that stand for ours, and sizes that shapes show."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cir_infer.errors import CheckpointError

__all__ = ["LAYER", "Tables", "as_floats", "count", "of_hugging_face", "renamed", "shape", "side_of"]

Tables = Sequence[tuple[str, str, Mapping[str, str]]]
"""A pattern at the start of a name, whose group is a block's number or empty; what stands for it; and the
prefixes of what is inside, with what stands for those."""

LAYER = {
    **{
        f"{ours}.{part}.": f"{theirs}.self.{part}."
        for ours, theirs in (("attention", "attention"), ("cross", "crossattention"))
        for part in ("query", "key", "value")
    },
    "attention.dense.": "attention.output.dense.",
    "attention.norm.": "attention.output.LayerNorm.",
    "cross.dense.": "crossattention.output.dense.",
    "cross.norm.": "crossattention.output.LayerNorm.",
    "of_text.inner.": "intermediate.dense.",
    "of_text.outer.": "output.dense.",
    "of_text.norm.": "output.LayerNorm.",
    "of_queries.inner.": "intermediate_query.dense.",
    "of_queries.outer.": "output_query.dense.",
    "of_queries.norm.": "output_query.LayerNorm.",
}
"""Inside a layer of BERT and of the Q-Former: LAVIS' prefix of each of ours."""


def of_hugging_face(theirs: str) -> str:
    """Hugging Face's prefix of LAVIS'."""
    return theirs.replace(".self.", ".attention.")


def renamed(name: str, tables: Tables) -> str | None:
    """The name that stands for another, None where none does."""
    for pattern, start, table in tables:
        block = re.match(pattern, name)
        if block is None:
            continue
        rest = name[block.end() :]
        for old, new in table.items():
            if rest.startswith(old):
                return f"{start}{block[1]}{'.' if block[1] else ''}{new}{rest[len(old) :]}"
    return None


def as_floats(name: str, value: Tensor, where: str) -> Tensor:
    """A weight in float32.

    Raises:
        CheckpointError: it is of whole or complex numbers.
    """
    if not value.is_floating_point():
        raise CheckpointError(f"{where}: weight {name[:100]} is of type {value.dtype}; expected floats")
    return value.float()


def shape(weights: Mapping[str, Any], name: str, dims: int, where: str) -> tuple[int, ...]:
    """The shape of a weight, of so many axes and none of them empty.

    Raises:
        CheckpointError: it is missing or has another shape.
    """
    value = weights.get(name)
    if not isinstance(value, Tensor) or value.ndim != dims or 0 in value.shape:
        raise CheckpointError(f"{where}: the weight that is {name} here is missing or has another shape")
    return tuple(value.shape)


def count(weights: Mapping[str, Any], pattern: str) -> int:
    """How many different numbers stand at the pattern's group."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def side_of(positions: int, where: str) -> int:
    """The side of the square grid whose places a ViT has, beside its class token's.

    Raises:
        CheckpointError: they are no such grid.
    """
    side = math.isqrt(max(0, positions - 1))
    if side < 1 or side * side != positions - 1:
        raise CheckpointError(f"{where}: a ViT with {positions} places has no square grid of patches")
    return side
