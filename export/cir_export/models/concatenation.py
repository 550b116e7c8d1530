"""Concatenation: a two-layer perceptron over [image; text] (a baseline of Vo et al., CVPR 2019, sec. 4).

    q = W_2 ReLU(W_1 [r; m])

with a batch norm in front of each ReLU and dropout before the last layer, as in the authors' code.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import CosineModel, EncoderSettings

__all__ = ["Concatenation"]


class Concatenation(CosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "concatenation"

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        both = 2 * settings.embedding_dim
        self.mlp = nn.Sequential(
            nn.BatchNorm1d(both),
            nn.ReLU(),
            nn.Linear(both, both),
            nn.BatchNorm1d(both),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(both, settings.embedding_dim),
        )

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        query: Tensor = self.mlp(torch.cat([reference, text], 1))
        return query
