"""MRN, multimodal residual networks (Kim et al., NeurIPS 2016; a baseline of Vo et al., CVPR 2019).

With h_0 = m, the text, and r the reference, each of L blocks adds a joint residual (Kim et al., eq. 2, 3):

    h_l = U_l h_{l-1} + tanh(A_l h_{l-1}) o tanh(C_l tanh(B_l r))        q = W h_L
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import CosineModel, EncoderSettings
from cir_infer.errors import UsageError

__all__ = ["Mrn", "MrnSettings"]


@dataclass(frozen=True)
class MrnSettings(EncoderSettings):
    """Configuration of MRN.

    Attributes:
        blocks: L; three in the paper.
    """

    blocks: int = 3


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shortcut = nn.Linear(dim, dim, bias=False)
        self.text = nn.Linear(dim, dim)
        self.image = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))

    def forward(self, hidden: Tensor, reference: Tensor) -> Tensor:
        joint = torch.tanh(self.text(hidden)) * torch.tanh(self.image(reference))
        return self.shortcut(hidden) + joint  # type: ignore[no-any-return]


class Mrn(CosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "mrn"
    settings_type: ClassVar[type[EncoderSettings]] = MrnSettings

    def __init__(self, settings: MrnSettings) -> None:
        super().__init__(settings)
        if settings.blocks < 1:
            raise UsageError("model.blocks: 0; expected at least 1")
        self.blocks = nn.ModuleList(_Block(settings.embedding_dim) for _ in range(settings.blocks))
        self.out = nn.Linear(settings.embedding_dim, settings.embedding_dim)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        hidden = text
        for block in self.blocks:
            hidden = block(hidden, reference)
        query: Tensor = self.out(hidden)
        return query
