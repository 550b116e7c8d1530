"""Three ways to explain one term over a picture: our shares, Grad-CAM, occlusion.

Each takes prepared pictures and the terms of one query, and gives float64 (n, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.engine import Engine
from cir_infer.explaining.pictures import covered, grid_of
from cir_infer.explaining.shares import shares, values_of
from cir_infer.runtime.graph import Array
from cir_infer.scoring.contract import QueryTerms

__all__ = ["Maps", "Method", "grad_cam", "occlusion", "of_shares"]

Maps: TypeAlias = npt.NDArray[np.float64]
Method = Callable[[Array, QueryTerms, int], Maps]
"""Of prepared pictures (n, H, W, 3), a query's terms and a term's number: (n, h, w)."""


def of_shares(engine: Engine) -> Method:
    """The exact sum of `hits.explain`."""

    def explain(pictures: Array, terms: QueryTerms, term: int) -> Maps:
        made = engine.encode_in_parts(pictures)
        return np.stack(
            [
                shares(terms, made.rows[at], made.parts[at], made.constant[at])[term]
                for at in range(len(pictures))
            ]
        )

    return explain


def occlusion(engine: Engine) -> Method:
    """What a term loses when a patch is painted over, see `cir_infer.explaining.pictures`."""

    def explain(pictures: Array, terms: QueryTerms, term: int) -> Maps:
        found = []
        for picture in pictures:
            rows = engine.encode_prepared(np.concatenate([picture[None], covered(picture)]))
            values = np.array([values_of(terms, row)[0, term] for row in rows])
            found.append((values[0] - values[1:]).reshape(grid_of(picture)))
        return np.stack(found)

    return explain


def grad_cam(model: Any) -> Method:
    """Grad-CAM (Selvaraju et al., ICCV 2017) of a term on the last convolutional map, as ARTEMIS' authors do.

    The term is the whole of it, as a function of the row; the map is rectified.

    Args:
        model: in PyTorch, with an `image_encoder` on pixels.
    """
    import torch

    encoder = model.image_encoder.eval()

    def explain(pictures: Array, terms: QueryTerms, term: int) -> Maps:
        with torch.no_grad():
            last = encoder.trunk(encoder.normalize(torch.from_numpy(pictures)))
        last.requires_grad_()
        rows = encoder.embed(last)
        values = rows @ torch.from_numpy(terms.numerators[0, term])
        if terms.weights is not None:
            values = values / (rows * rows @ torch.from_numpy(terms.weights[0, term])).sqrt()
        (gradient,) = torch.autograd.grad(values.sum(), last)
        weights = gradient.mean((2, 3), keepdim=True)
        maps: Maps = (weights * last).sum(1).relu().detach().numpy().astype(np.float64)
        return maps

    return explain
