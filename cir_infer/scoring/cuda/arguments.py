"""The arguments of the CUDA kernels, field by field as in kernels/score/cuda/arguments.cuh."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_uint32, c_void_p

__all__ = [
    "BELOW",
    "FINISH",
    "LOOSE",
    "MAX_FUSED_K",
    "PACK_SHARED_BYTES",
    "RESCUE",
    "ROWS_OF_ROUND",
    "SCAN_SHARED_BYTES",
    "SPARE_KEYS",
    "PackArguments",
    "QuantiseArguments",
    "ReadArguments",
    "ScanArguments",
    "Segment",
    "ShortlistArguments",
    "SurveyArguments",
]

ROWS_OF_ROUND = 32
MAX_FUSED_K = 1024
SCAN_SHARED_BYTES = 1728
SPARE_KEYS = 64
"""Keys beyond k that a block may hand on."""
PACK_SHARED_BYTES = 384
FINISH, RESCUE, BELOW, LOOSE = 1, 2, 4, 8


class Segment(ctypes.Structure):
    """A run of consecutive gallery rows in memory the GPU can read."""

    _fields_ = (("rows", c_void_p), ("scales", c_void_p), ("first", c_uint32), ("count", c_uint32))


class ScanArguments(ctypes.Structure):
    """Of the exact kernel."""

    _fields_ = (
        ("segments", c_void_p),
        ("numerators", c_void_p),
        ("weights", c_void_p),
        ("allow", c_void_p),
        ("lists", c_void_p),
        ("list_counts", c_void_p),
        ("overflowed", c_void_p),
        ("rescued", c_void_p),
        ("keys", c_void_p),
        ("key_terms", c_void_p),
        ("key_counts", c_void_p),
        ("tickets", c_void_p),
        ("floors", c_void_p),
        ("ceilings", c_void_p),
        ("slacks", c_void_p),
        ("peaks", c_void_p),
        ("scores", c_void_p),
        ("rows", c_void_p),
        ("terms", c_void_p),
        ("segment", c_uint32),
        ("segment_count", c_uint32),
        ("dimension", c_uint32),
        ("vectors", c_uint32),
        ("term_count", c_uint32),
        ("k", c_uint32),
        ("out_stride", c_uint32),
        ("list_capacity", c_uint32),
        ("key_capacity", c_uint32),
        ("buffer", c_uint32),
        ("run", c_uint32),
        ("flags", c_uint32),
    )


class ShortlistArguments(ctypes.Structure):
    """Of the tensor-core kernel."""

    _fields_ = (
        ("rows", c_void_p),
        ("scales", c_void_p),
        ("operands", c_void_p),
        ("constants", c_void_p),
        ("floors", c_void_p),
        ("allow", c_void_p),
        ("lists", c_void_p),
        ("list_counts", c_void_p),
        ("first", c_uint32),
        ("count", c_uint32),
        ("queries", c_uint32),
        ("vectors", c_uint32),
        ("k_steps", c_uint32),
        ("list_capacity", c_uint32),
        ("column_warps", c_uint32),
        ("row_scale", c_float),
    )


class PackArguments(ctypes.Structure):
    """Of the kernel that turns float32 terms into operands of the tensor cores."""

    _fields_ = (
        ("numerators", c_void_p),
        ("weights", c_void_p),
        ("operands", c_void_p),
        ("constants", c_void_p),
        ("queries", c_uint32),
        ("term_count", c_uint32),
        ("dimension", c_uint32),
        ("k_steps", c_uint32),
        ("quad_values", c_uint32),
        ("row_scale", c_float),
        ("largest_norm", c_float),
        ("row_rounding", c_float),
        ("quantisation", c_float),
    )


class SurveyArguments(ctypes.Structure):
    """Of the kernel that looks at new rows once."""

    _fields_ = (
        ("rows", c_void_p),
        ("scales", c_void_p),
        ("largest_value", c_void_p),
        ("largest_norm", c_void_p),
        ("count", c_uint32),
        ("vectors", c_uint32),
    )


class QuantiseArguments(ctypes.Structure):
    """Of the kernel that makes the int8 shadow of new rows."""

    _fields_ = (
        ("rows", c_void_p),
        ("quantised", c_void_p),
        ("scales", c_void_p),
        ("count", c_uint32),
        ("vectors", c_uint32),
        ("quantised_bytes", c_uint32),
    )


class ReadArguments(ctypes.Structure):
    """Of the kernel that only reads, for benchmarks."""

    _fields_ = (("data", c_void_p), ("mixed", c_void_p), ("vectors", c_uint32))
