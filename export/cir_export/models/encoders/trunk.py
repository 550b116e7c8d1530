"""What every convolutional trunk has: its maps, computed from pixels or taken as they were kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Trunk"]


class Trunk(nn.Module, ABC):
    """A convolutional trunk.

    Its maps, and whatever is averaged of them, are the same all along while it is frozen. Training then hands
    in what was kept, a row an image, in place of pixels.

    Attributes:
        channels: the stages' channels, fine to coarse.
        kept: channels and side of each map in a kept row, fine to coarse; empty where none are kept.
    """

    channels: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self.kept: tuple[tuple[int, int], ...] = ()

    @abstractmethod
    def stages_of(self, x: Tensor) -> list[Tensor]:
        """Every stage's map of a normalised image (n, 3, H, W), fine to coarse."""

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps (n, C_l, H_l, W_l), fine to coarse.

        Args:
            x: normalised images (n, 3, H, W), which give every stage's; or kept rows (n, K), which give those
                that were kept.
        """
        if x.ndim != 2:
            return self.stages_of(x)
        parts = torch.split(x.float(), [channels * side * side for channels, side in self.kept], 1)
        return [
            part.view(-1, channels, side, side)
            for part, (channels, side) in zip(parts, self.kept, strict=True)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """The last map, (n, channels[-1], h, w)."""
        return self.maps(x)[-1]

    def keep(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps of square sides as rows (n, K) that `maps` takes in place of images."""
        self.kept = tuple((found.shape[1], found.shape[2]) for found in maps)
        return torch.cat([found.float().flatten(1) for found in maps], 1)
