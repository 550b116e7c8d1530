"""Vectors, and galleries that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cir_infer.gallery import Gallery

DIM = 8


def vectors(count: int, seed: int = 0, dimension: int = DIM) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def names(count: int, prefix: str = "i") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def filled(path: Path, count: int = 10, **options: Any) -> Gallery:
    gallery = Gallery.create(path, dimension=DIM, **options)
    if count:
        gallery.add_vectors(
            ids=names(count),
            vectors=vectors(count),
            metadata=[
                {"number": number, "parity": "odd" if number % 2 else "even"} for number in range(count)
            ],
        )
    return gallery


def rows_of(mask: np.ndarray | None, count: int) -> list[int]:
    """The row numbers that a mask allows."""
    if mask is None:
        return list(range(count))
    return [int(row) for row in np.flatnonzero(np.unpackbits(mask, bitorder="little")[:count])]
