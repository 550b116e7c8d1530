"""Which kernel answers a search, in what shape: choices that depend on sizes and types alone."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

from cir_infer.scoring.cuda.arguments import SCAN_SHARED_BYTES
from cir_infer.scoring.cuda.gallery import CudaGallery

__all__ = [
    "WARPS",
    "Launch",
    "ShortlistShape",
    "Span",
    "row_scale",
    "scan_kernel",
    "scanned",
    "shortlist_shape",
]

WARPS = 8
"""Of a block."""

_TILES_OF_WARP = 8


class Launch(NamedTuple):
    """A kernel and all that it is launched with."""

    kernel: str
    grid: tuple[int, int]
    shared_bytes: int
    arguments: ctypes.Structure


@dataclass(frozen=True)
class Span:
    """Rows [first, first + count), and where kernels find the first of them and its scale (0: no scales)."""

    address: int
    scales: int
    first: int
    count: int


class ShortlistShape(NamedTuple):
    """How the tensor-core kernel divides its work.

    Attributes:
        family: "many" or "few".
        groups: of 8 queries that a warp takes.
        warps: side by side, with the same rows and different queries.
        row_tiles: of 16 rows that a warp takes.
    """

    family: str
    groups: int
    warps: int
    row_tiles: int


def scanned(gallery: CudaGallery) -> tuple[str, int, int]:
    """Suffix, vectors and matrix steps of the rows that the shortlist reads."""
    shadow = gallery.shadow
    row_type = gallery.row_type if shadow is None else shadow.row_type
    vectors = gallery.vectors if shadow is None else shadow.vectors
    return row_type.suffix, vectors, -(-vectors // 4) * row_type.steps


def shortlist_shape(shared_bytes: int, queries: int, tiles: int, steps: int) -> ShortlistShape | None:
    """The shape for so many queries of `tiles` tiles and `steps` matrix steps; None if nothing fits."""
    group_bytes = steps * tiles * 256
    wide = _TILES_OF_WARP // tiles
    shapes = [ShortlistShape("many", wide, warps, 3) for warps in (4, 2, 1)]
    shapes += [ShortlistShape("few", 1, warps, 2) for warps in (4, 2, 1)]
    for shape in shapes:
        taken = 8 * shape.groups * shape.warps
        fits = shape.groups * shape.warps * group_bytes <= shared_bytes
        # No wider than the batch, unless it is the narrowest there is.
        narrowest = shape.family == "few" and shape.warps == 1
        if fits and (taken - 8 * shape.groups < queries or narrowest):
            if shape.family == "many" and queries <= 8:
                continue
            return shape
    return None


def scan_kernel(gallery: CudaGallery, shared_bytes: int, term_count: int, weighted: bool) -> tuple[str, int]:
    """The exact kernel's variant for a search, and the bytes of shared memory for its terms."""
    at_once = 1 if term_count == 1 else 2
    kind = "ratio" if weighted else "dot"
    values = -(-term_count // at_once) * at_once * (2 if weighted else 1)
    in_shared = values * gallery.vectors * gallery.row_type.width * 4
    if SCAN_SHARED_BYTES + 2048 * 8 + in_shared <= shared_bytes:
        return f"scan_{gallery.row_type.suffix}_{kind}{at_once}", in_shared
    return f"scan_{gallery.row_type.suffix}_{kind}_any", 0


def row_scale(largest: float) -> float:
    """The power of two that brings the largest value into [2^6, 2^7), so that squares use float16's range."""
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** max(-120, min(15, 7 - math.frexp(largest)[1]))
