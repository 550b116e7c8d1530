"""A term as a sum over the positions of the hit's image.

For a stored row t, and parts P(x) and a constant c with s t' = sum_x P(x) + c for the row t' that the encoder
makes of the image now (t is t' up to the rounding of the gallery),

    term_j = (n_j . t) / d_j        d_j = sqrt(w_j . t^2)
    share_j(x) = s (n_j . P(x)) / d_j

with s = (t . u) / (u . u), u = sum_x P(x) + c. Shares and rest_j = (n_j . (s c + t - s u)) / d_j add up to
the term; t - s u is what the rounding of the stored row did.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.reference import exact_terms

__all__ = ["shares", "values_of", "without_each"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def values_of(terms: QueryTerms, row: Floats) -> Doubles:
    """Every term of every query on one row (D,), as scorers have it: float64 (Q, J).

    Of an item of several vectors (M, D) a term is its largest over them.
    """
    values: Doubles = exact_terms(terms, np.atleast_2d(row)).max(axis=2)
    return values


def shares(terms: QueryTerms, row: Floats, parts: Floats, constant: Floats) -> Doubles:
    """The shares of one query's terms.

    Args:
        terms: one query.
        row: as the gallery holds it, (D,).
        parts: (h, w, D).
        constant: (D,).

    Returns:
        float64 (J, h, w).
    """
    t, of_places = row.astype(np.float64), parts.astype(np.float64)
    whole = of_places.sum((0, 1)) + constant
    scale = _ratio(t @ whole, whole @ whole)
    found: Doubles = np.einsum("jd,hwd->jhw", terms.numerators[0].astype(np.float64), of_places) * scale
    if terms.weights is not None:
        norms = np.sqrt(terms.weights[0].astype(np.float64) @ (t * t))
        found = np.where(norms[:, None, None] > 0, found / np.maximum(norms, 1e-300)[:, None, None], 0.0)
    return found


def without_each(parts: Floats, constant: Floats, unit_rows: bool) -> Floats:
    """The row of an image, then what it would be without one position after the other: (1 + h * w, D).

    Args:
        parts: (h, w, D).
        constant: (D,).
        unit_rows: whether rows are divided by their norm.
    """
    of_places = parts.astype(np.float64).reshape(-1, parts.shape[-1])
    whole = of_places.sum(0) + constant
    rows = np.concatenate([whole[None], whole - of_places])
    if unit_rows:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
    return rows.astype(np.float32)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0
