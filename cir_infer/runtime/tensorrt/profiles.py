"""The shapes that a plan is built for: one profile for a single query, one for batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from cir_infer.errors import DeviceError, shown

__all__ = ["BATCH", "SINGLE", "Limits", "Profile", "Range", "profiles_for"]

Shape = tuple[int, ...]

SINGLE, BATCH = 0, 1
"""Numbers of the two profiles."""

_USUAL_TOKENS = 12


@dataclass(frozen=True)
class Limits:
    """What a plan must serve.

    Attributes:
        batch: the most images or queries in one run.
        tokens: the most tokens of a text.
    """

    batch: int = 32
    tokens: int = 512

    def to_json(self) -> dict[str, int]:
        """As plain values."""
        return asdict(self)


class Range(NamedTuple):
    """Shapes of one input: the smallest, the one to be fastest at, the largest."""

    least: Shape
    best: Shape
    most: Shape


Profile = dict[str, Range]


def profiles_for(inputs: Mapping[str, Shape], limits: Limits) -> tuple[Profile, Profile]:
    """The profiles `SINGLE` and `BATCH` of a graph.

    Args:
        inputs: shapes by name, -1 where an axis is dynamic: the first one is the batch, and the second
            one of `tokens` the text's length.
        limits: see `Limits`.

    Raises:
        DeviceError: another axis is dynamic, which no bundle's graph has.
    """
    single = {name: _range(name, shape, limits, 1) for name, shape in inputs.items()}
    return single, {name: _range(name, shape, limits, limits.batch) for name, shape in inputs.items()}


def _range(name: str, shape: Shape, limits: Limits, batch: int) -> Range:
    least, best, most = list(shape), list(shape), list(shape)
    for axis, length in enumerate(shape):
        if length >= 0:
            continue
        if axis == 0:
            least[axis], best[axis], most[axis] = 1, batch, batch
        elif axis == 1 and name == "tokens":
            usual = min(_USUAL_TOKENS, limits.tokens)
            least[axis], best[axis], most[axis] = 1, usual, limits.tokens
        else:
            raise DeviceError(
                f"axis {axis} of the input {shown(name)} {shape} is dynamic; expected only batches and text "
                "lengths to be, export the model again"
            )
    return Range(tuple(least), tuple(best), tuple(most))
