"""FiLM (Perez et al., AAAI 2018; a baseline of Vo et al., CVPR 2019).

The text gives scales and shifts of the channels of the trunk's last map, in residual blocks:

    y = ReLU(conv_1x1(x));  x' = y + ReLU(gamma o BN(conv_3x3(y)) + beta)        [gamma - 1; beta] = W m

Then the image encoder's pooling and linear layer make the query. A gallery row is the same encoder
without the blocks, so a row cannot serve as the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import EncoderSettings, MapCosineModel
from cir_infer.errors import UsageError

__all__ = ["Film", "FilmSettings"]


@dataclass(frozen=True)
class FilmSettings(EncoderSettings):
    """Configuration of FiLM.

    Attributes:
        blocks: residual blocks behind the trunk.
    """

    blocks: int = 2


class _Block(nn.Module):
    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.film = nn.Linear(text, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        scale, shift = self.film(text)[:, :, None, None].chunk(2, 1)
        x = torch.relu(self.mix(x))
        return x + torch.relu((1 + scale) * self.norm(self.conv(x)) + shift)


class Film(MapCosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "film"
    settings_type: ClassVar[type[EncoderSettings]] = FilmSettings

    def __init__(self, settings: FilmSettings) -> None:
        super().__init__(settings)
        if settings.blocks < 1:
            raise UsageError("model.blocks: 0; expected at least 1")
        channels = self.image_encoder.trunk.channels[-1]
        self.blocks = nn.ModuleList(_Block(channels, settings.embedding_dim) for _ in range(settings.blocks))

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        for block in self.blocks:
            reference = block(reference, text)
        return self.image_encoder.embed(reference)
