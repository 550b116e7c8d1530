"""The shapes as signed distance functions, in space for the shaded view and in the plane for the flat one.

Everything here uses only additions, products, quotients, square roots, minima and maxima, element by
element in float64. IEEE 754 fixes each of them to the last bit, so pictures are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["FLAT", "MIDDLE", "SOLID", "Array", "length"]

Array = npt.NDArray[np.float64]


def length(*components: Array) -> Array:
    """The Euclidean norm."""
    total = components[0] * components[0]
    for c in components[1:]:
        total = total + c * c
    root: Array = np.sqrt(total)
    return root


def _box(distances: tuple[Array, ...]) -> Array:
    """Distance to a box, from the distance to each of its pairs of faces."""
    outside = length(*(np.maximum(d, 0.0) for d in distances))
    inside = distances[0]
    for d in distances[1:]:
        inside = np.maximum(inside, d)
    return outside + np.minimum(inside, 0.0)


# A yaw of the cube that shows two of its sides; (12/13, 5/13) is a unit vector.
_COS, _SIN = 12.0 / 13.0, 5.0 / 13.0


def _cube(x: Array, y: Array, z: Array) -> Array:
    u, v = _COS * x + _SIN * y, _COS * y - _SIN * x
    h, edge = 0.72, 0.07
    return _box((np.abs(u) - h, np.abs(v) - h, np.abs(z - h - edge) - h)) - edge


def _sphere(x: Array, y: Array, z: Array) -> Array:
    return length(x, y, z - 0.95) - 0.95


def _cylinder(x: Array, y: Array, z: Array) -> Array:
    edge = 0.06
    return _box((length(x, y) - 0.66, np.abs(z - 0.98) - 0.92)) - edge


def _cone(x: Array, y: Array, z: Array) -> Array:
    # The slope of radius 1 over height 2.1 as a half space, cut by the floor.
    side = (length(x, y) * 2.1 + (z - 2.1)) / np.sqrt(2.1 * 2.1 + 1.0)
    cut: Array = np.maximum(side, 0.03 - z) - 0.03
    return cut


def _ring(x: Array, y: Array, z: Array) -> Array:
    return length(length(x, y) - 0.74, z - 0.32) - 0.32


def _star(x: Array, y: Array, z: Array) -> Array:
    edge = 0.06
    return _box((_star_outline(x, y), np.abs(z - 0.34) - 0.28)) - edge


_C36, _S36 = 0.8090169943749475, 0.5877852522924731


def _star_outline(x: Array, y: Array, outer: float = 1.12, inner: float = 0.5) -> Array:
    """Distance to a five-pointed star, folded by its mirror lines onto one edge from tip to notch."""
    x = np.abs(x)
    for nx in (_C36, -_C36):
        fold = 2.0 * np.maximum(nx * x - _S36 * y, 0.0)
        x, y = x - fold * nx, y + fold * _S36
    x = np.abs(x)
    ex, ey = inner * _S36, inner * _C36 - outer
    along = np.clip((x * ex + (y - outer) * ey) / (ex * ex + ey * ey), 0.0, 1.0)
    distance = length(x - along * ex, y - outer - along * ey)
    side = x * ey - (y - outer) * ex
    signed: Array = np.where(side < 0.0, distance, -distance)
    return signed


SOLID: dict[str, Callable[[Array, Array, Array], Array]] = {
    "cube": _cube,
    "sphere": _sphere,
    "cylinder": _cylinder,
    "cone": _cone,
    "ring": _ring,
    "star": _star,
}
"""Shape -> distance at (x, y, z), standing on z = 0, of radius about 1. x right, y away, z up."""

MIDDLE = {"cube": 0.79, "sphere": 0.95, "cylinder": 0.98, "cone": 0.75, "ring": 0.32, "star": 0.34}
"""Shape -> the height that the eye takes for its middle, in the same unit."""


def _flat_cylinder(x: Array, y: Array) -> Array:
    return _box((np.abs(x) - 0.36, np.abs(y) - 0.74)) - 0.22


def _flat_cone(x: Array, y: Array) -> Array:
    side = (np.abs(x) * 1.9 + (y - 0.95)) / np.sqrt(1.9 * 1.9 + 1.0)
    cut: Array = np.maximum(side, -0.85 - y)
    return cut


FLAT: dict[str, Callable[[Array, Array], Array]] = {
    "cube": lambda x, y: _box((np.abs(x) - 0.74, np.abs(y) - 0.74)) - 0.1,
    "sphere": lambda x, y: length(x, y) - 0.95,
    "cylinder": _flat_cylinder,
    "cone": _flat_cone,
    "ring": lambda x, y: np.abs(length(x, y) - 0.7) - 0.26,
    "star": lambda x, y: _star_outline(x, y),
}
"""Shape -> distance at (x, y) in the plane, y up, of radius about 1."""
