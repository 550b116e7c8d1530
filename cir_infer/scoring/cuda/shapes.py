"""Which kernel answers a search, in what shape: choices that depend on sizes and types alone."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import NamedTuple

from cir_infer.scoring.cuda.arguments import ROWS_OF_ROUND, SCAN_SHARED_BYTES
from cir_infer.scoring.cuda.gallery import CudaGallery
from cir_infer.scoring.cuda.tuning import Tuning

__all__ = [
    "WARPS",
    "Launch",
    "ShortlistShape",
    "Span",
    "first_rows",
    "list_capacity",
    "most_blocks",
    "most_of_block",
    "row_scale",
    "scan_kernel",
    "scanned",
    "shared_out",
    "shortlist_shape",
    "stage_growth",
]

WARPS = 8
"""Of a block."""

_TILES_OF_WARP = 8
_MOST_ROUNDS, _LEAST_RUNS = 8, 4
_BLOCKS_OF_SCAN = 2
"""Blocks of the exact kernel on a multiprocessor: what its registers allow."""
_WIDEST_GRID = 65_535


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


def most_blocks(multiprocessors: int, queries: int) -> int:
    """Blocks of the exact kernel for each query that fit on the GPU at once, at least 1."""
    return max(1, min(_WIDEST_GRID, _BLOCKS_OF_SCAN * multiprocessors // max(1, queries)))


def first_rows(tuning: Tuning, queries: int, k: int) -> int:
    """Rows that each query of a batch scores exactly before the first stage."""
    return max(tuning.least_first_rows, 2 * k, tuning.first_rows // queries)


def list_capacity(tuning: Tuning, queries: int, k: int) -> int:
    """Rows that each query of a batch may list in a stage."""
    return max(tuning.list_capacity, min(1 << 14, tuning.most_listed // queries), 8 * k)


def shared_out(count: int, most: int) -> tuple[int, int]:
    """How the exact kernel shares rows out: the rows of a run, and the blocks that take runs in turn.

    The blocks run side by side, so the scan takes as long as the block with the most rows. A run is a
    multiple of the rows that a block takes at a time; what is left for the last one is shared by all blocks.
    After the first quarter and before the last run a block hears what the others have found so far, which
    spares it keys and exact scores: hence four runs where there are rows for as many.

    Args:
        count: rows, at least 1.
        most: blocks that fit on the GPU at once.
    """
    of_block = -(-count // most)
    run = ROWS_OF_ROUND * min(_MOST_ROUNDS, -(-of_block // (_LEAST_RUNS * ROWS_OF_ROUND)))
    return run, min(most, -(-count // of_block))


def most_of_block(count: int, run: int, blocks: int) -> int:
    """Rows of the block with the most."""
    stripes = -(-count // (run * blocks))
    return (stripes - 1) * run + -(-(count - (stripes - 1) * run * blocks) // blocks)


def stage_growth(tuning: Tuning, queries: int, listed: int, first: int, count: int, most: int) -> int:
    """By which factor each shortlist of a batch reads more rows than were read before it.

    A large one makes few stages with long lists, a small one many with short ones: among n rows whose k best
    are known, the next (g - 1) n hold some (g - 1) k that are better. A launch costs `tuning.stage`, a listed
    row `tuning.listed_row` in each query.

    Args:
        tuning: what the GPU takes.
        queries: of the batch.
        listed: rows that a stage of growth 2 lists in each query: k, or more where bounds are wide.
        first: rows that were scored before the first stage.
        count: rows of the gallery, more than `first`.
        most: the largest growth whose lists fit, at least 2.
    """

    def cost(growth: int) -> float:
        stages = math.ceil(math.log(count / first) / math.log(growth) - 1e-9)
        return stages * (tuning.stage * 1e3 + tuning.listed_row * queries * listed * (growth - 1))

    return min(range(2, most + 1), key=cost)


def row_scale(largest: float) -> float:
    """The power of two that brings the largest value into [2^6, 2^7), so that squares use float16's range."""
    if not 0 < largest < math.inf:
        return 1.0
    return 2.0 ** max(-120, min(15, 7 - math.frexp(largest)[1]))
