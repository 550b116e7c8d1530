"""Pictures of a scene: "flat", drawn from above in plain colours, and "shaded", three-dimensional.

An object's picture does not depend on its cell (the camera is orthographic), so each of the few
different ones is computed once and pasted. See `solids` for why pixels are equal on every machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cir_eval.datasets.scenes.scene import Object, Scene
from cir_eval.datasets.scenes.solids import FLAT, MIDDLE, SOLID, Array, length

__all__ = ["VIEWS", "render"]

VIEWS = ("flat", "shaded")
Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Points = tuple[Array, Array, Array]

_PALETTE = {
    "red": (214, 48, 49),
    "orange": (240, 128, 28),
    "yellow": (250, 206, 48),
    "green": (52, 158, 74),
    "cyan": (46, 198, 214),
    "blue": (44, 88, 204),
    "purple": (146, 68, 178),
    "black": (52, 54, 62),
}
_RADIUS = {"small": 0.2, "large": 0.335}
"""An object's radius as a share of its cell's width."""

_OVERSAMPLING = 4
# Unit vectors of exact decimals. The camera looks away from the viewer and down; light falls from the left.
_AWAY, _DOWN = 0.6, 0.8
_LIGHT = (-0.48, -0.36, 0.8)


class _Layer(NamedTuple):
    """An object around its cell's centre: uint8 (n, n, 3), premultiplied by its cover, uint8 (n, n, 1)."""

    colour: Pixels
    cover: Pixels


def render(scene: Scene, view: str, size: int = 128) -> Pixels:
    """A picture of the scene.

    Objects lie a little off their cells' centres, by an amount that follows from the scene alone.

    Args:
        scene: what to draw.
        view: "flat" or "shaded".
        size: width and height in pixels.

    Returns:
        uint8 (size, size, 3) RGB.
    """
    canvas: Pixels = _floor(view, size).copy()
    cell = size / 3.0
    jitter = hashlib.sha256(repr(scene.to_json()).encode()).digest()
    places = [
        (
            round((i // 3 + 0.5) * cell + (jitter[2 * i] % 5 - 2) * cell / 43.0),
            round((i % 3 + 0.5) * cell + (jitter[2 * i + 1] % 5 - 2) * cell / 43.0),
            scene.at(i),
        )
        for i in scene.occupied
    ]
    if view == "shaded":
        for row, column, obj in places:
            _paste(canvas, _shadow(obj.shape, obj.size, size), row, column)
    for row, column, obj in places:  # from the far row to the near one
        _paste(canvas, _picture(obj, view, size), row, column)
    return canvas


def _paste(canvas: Pixels, layer: _Layer, row: int, column: int) -> None:
    """Lay a picture over the canvas, its centre at (row, column)."""
    n, size = len(layer.colour), len(canvas)
    top, left = row - n // 2, column - n // 2
    y0, y1, x0, x1 = max(top, 0), min(top + n, size), max(left, 0), min(left + n, size)
    inside = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
    below = canvas[y0:y1, x0:x1].astype(np.uint16)
    through = np.uint16(255) - layer.cover[inside]
    canvas[y0:y1, x0:x1] = layer.colour[inside] + (
        (below * through + np.uint16(127)) // np.uint16(255)
    ).astype(np.uint8)


@lru_cache(maxsize=8)
def _floor(view: str, size: int) -> Pixels:
    """The ground: a board of nine tiles."""
    at = (np.arange(size * _OVERSAMPLING) + 0.5) / (size * _OVERSAMPLING)
    y, x = at[:, None], at[None, :]
    to_line = np.minimum(
        np.minimum(np.abs(x - 1 / 3), np.abs(x - 2 / 3)) + 0 * y,
        np.minimum(np.abs(y - 1 / 3), np.abs(y - 2 / 3)) + 0 * x,
    )
    line = np.where(to_line < 0.006, 1.0, 0.0)
    if view == "flat":
        value = 1.0 - 0.1 * line
        rgb = np.stack([value * 252.0, value * 252.0, value * 250.0], axis=-1)
    else:
        # Brighter towards the light, on the left and at the front.
        glow = 1.0 - 0.16 * ((x - 0.25) * (x - 0.25) + (y - 0.6) * (y - 0.6))
        value = glow * (1.0 - 0.055 * line)
        rgb = np.stack([value * 233.0, value * 232.0, value * 228.0], axis=-1)
    return _to_bytes(_shrink(rgb))


@lru_cache(maxsize=1024)
def _picture(obj: Object, view: str, size: int) -> _Layer:
    """The object itself."""
    rgb = np.array(_PALETTE[obj.colour], np.float64)
    if view == "flat":
        x, y, unit = _plane(obj.size, size)
        cover = np.where(FLAT[obj.shape](x / unit, y / unit) < 0.0, 1.0, 0.0)[..., None]
        colour = rgb * cover
    else:
        hit, light, shine = _shading(obj.shape, obj.size, size)
        # Light adds up in linear intensity; a square root is close to a display's curve.
        linear = (rgb / 255.0) * (rgb / 255.0) * light[..., None] + shine[..., None]
        cover = hit[..., None]
        colour = np.sqrt(np.minimum(linear, 1.0)) * 255.0 * cover
    alpha = _to_bytes(_shrink(cover * 255.0))
    return _Layer(np.minimum(_to_bytes(_shrink(colour)), alpha), alpha)


@lru_cache(maxsize=64)
def _shadow(shape: str, size_name: str, size: int) -> _Layer:
    """The shadow that the object throws on the ground, and the darkness where it touches it."""
    u, v, unit = _plane(size_name, size)
    x, y = u / unit, (v / unit + _lift(shape)) / _DOWN
    z = np.zeros_like(x) + 1e-3
    lit = _visibility(shape, x, y, z, softness=5.0)
    contact = np.clip(SOLID[shape](x, y, z) / 0.5, 0.0, 1.0)
    dark = 0.36 * (1.0 - lit) + 0.2 * (1.0 - contact) * (1.0 - contact)
    alpha = _to_bytes(_shrink((dark * 255.0)[..., None]))
    return _Layer(np.zeros((*alpha.shape[:2], 3), np.uint8), alpha)


def _plane(size_name: str, size: int) -> tuple[Array, Array, float]:
    """Fine sample positions (right, up) around a cell's centre, and the object's radius, in pixels."""
    n = 2 * round(size * 0.32) * _OVERSAMPLING
    at = (np.arange(n) + 0.5 - n / 2) / _OVERSAMPLING
    x, y = np.broadcast_arrays(at[None, :], -at[:, None])
    return x, y, _RADIUS[size_name] * size / 3.0


def _lift(shape: str) -> float:
    """How far above its foot the middle of the object appears; it is drawn lower by that much."""
    return _AWAY * MIDDLE[shape]


@lru_cache(maxsize=64)
def _shading(shape: str, size_name: str, size: int) -> tuple[Array, Array, Array]:
    """Whether each fine sample shows the object, and its diffuse and mirrored light."""
    u, v, unit = _plane(size_name, size)
    u, v = u / unit, v / unit + _lift(shape)
    solid = SOLID[shape]
    hit, (x, y, z) = _march(solid, u, v)
    e = 1e-3
    nx = solid(x + e, y, z) - solid(x - e, y, z)
    ny = solid(x, y + e, z) - solid(x, y - e, z)
    nz = solid(x, y, z + e) - solid(x, y, z - e)
    norm = np.maximum(length(nx, ny, nz), 1e-12)
    nx, ny, nz = nx / norm, ny / norm, nz / norm
    lx, ly, lz = _LIGHT
    facing = np.maximum(nx * lx + ny * ly + nz * lz, 0.0)
    visible = _visibility(shape, x + 0.03 * nx, y + 0.03 * ny, z + 0.03 * nz, softness=8.0)
    ambient = 0.34 + 0.16 * nz + 0.1 * np.clip(z, 0.0, 1.0)
    # Half way between the light and the viewer; its 32nd power is a polished highlight.
    hx, hy, hz = lx, ly - _AWAY, lz + _DOWN
    half = math.sqrt(hx * hx + hy * hy + hz * hz)
    gloss = np.maximum((nx * hx + ny * hy + nz * hz) / half, 0.0)
    for _ in range(5):
        gloss = gloss * gloss
    light, shine = np.zeros(hit.shape), np.zeros(hit.shape)
    light[hit], shine[hit] = ambient + 0.85 * facing * visible, 0.32 * gloss * visible
    return hit.astype(np.float64), light, shine


def _march(solid: Callable[[Array, Array, Array], Array], u: Array, v: Array) -> tuple[Mask, Points]:
    """Which samples of the picture plane show the object, and where in space those meet it."""
    # (1, 0, 0) and (0, _DOWN, _AWAY) span the picture plane through the foot; start 4 in front of it.
    x, y, z = u.ravel(), (v * _DOWN - 4.0 * _AWAY).ravel(), (v * _AWAY + 4.0 * _DOWN).ravel()
    going = np.arange(x.size)
    for _ in range(64):
        before = y[going], z[going]
        d = solid(x[going], *before) * 0.9
        y[going], z[going] = after = before[0] + d * _AWAY, before[1] - d * _DOWN
        # What has arrived stays, and what is below the floor has passed: outside, it only goes down.
        going = going[(after[1] > -1.0) & ((after[0] != before[0]) | (after[1] != before[1]))]
    hit = (solid(x, y, z) < 0.01) & (z > -0.02)
    return hit.reshape(u.shape), (x[hit], y[hit], z[hit])


def _visibility(shape: str, x: Array, y: Array, z: Array, softness: float) -> Array:
    """How much of a large light each point sees, by how closely the way to it passes the object."""
    solid, (lx, ly, lz) = SOLID[shape], _LIGHT
    seen = np.ones_like(x)
    way = np.zeros_like(x) + 0.05
    for _ in range(28):
        d = solid(x + lx * way, y + ly * way, z + lz * way)
        seen = np.minimum(seen, np.maximum(softness * d / way, 0.0))
        way = way + np.clip(d, 0.03, 0.25)
    return seen * seen * (3.0 - 2.0 * seen)


def _shrink(samples: Array) -> Array:
    """The mean of each block of fine samples, added in a fixed order."""
    k = _OVERSAMPLING
    total = samples[0::k, 0::k]
    for i in range(k):
        for j in range(k):
            if i or j:
                total = total + samples[i::k, j::k]
    return total / (k * k)


def _to_bytes(values: Array) -> Pixels:
    return np.clip(values + 0.5, 0.0, 255.0).astype(np.uint8)
