"""The arguments of the recurrent kernels, field by field as in kernels/recurrent/cuda/arguments.cuh."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_uint32, c_void_p

__all__ = ["ARRIVAL_BYTES", "EncodeArguments"]

ARRIVAL_BYTES = 4 * 32 * 4
"""Four counts, each in a cache line of its own."""


class EncodeArguments(ctypes.Structure):
    """Of `encode_gru` and `encode_lstm`."""

    _fields_ = (
        ("tokens", c_void_p),
        ("words", c_void_p),
        ("input_weights", c_void_p),
        ("input_bias", c_void_p),
        ("recurrent_weights", c_void_p),
        ("candidate_bias", c_void_p),
        ("projection", c_void_p),
        ("projection_bias", c_void_p),
        ("inputs", c_void_p),
        ("states", c_void_p),
        ("pooled", c_void_p),
        ("projected", c_void_p),
        ("arrivals", c_void_p),
        ("text", c_void_p),
        ("done", c_void_p),
        ("steps", c_uint32),
        ("directions", c_uint32),
        ("hidden", c_uint32),
        ("out", c_uint32),
        ("input_vectors", c_uint32),
        ("hidden_vectors", c_uint32),
        ("pooled_vectors", c_uint32),
        ("block_units", c_uint32),
        ("resident_rows", c_uint32),
        ("over_time", c_uint32),
        ("least_square", c_float),
        ("unused", c_uint32),
    )
