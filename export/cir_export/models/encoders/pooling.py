"""From a convolutional map to a vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GeM", "GridPool", "MeanPool"]


class GeM(nn.Module):
    """Generalised mean over positions with p = 3 fixed (Radenovic et al., TPAMI 2019), clamped at 1e-6.

    In float32 whatever the autocast type: 1e-6 cubed is zero in float16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float().clamp_min(1e-6)
            return (x * x * x).mean((-2, -1)).pow(1.0 / 3.0)


class MeanPool(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C)."""
        return x.mean((-2, -1))


class GridPool(nn.Module):
    """Averages each cell of a grid x grid division and keeps all cells, so that position survives."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C * grid * grid); H and W are multiples of the grid."""
        kernel = (x.shape[-2] // self.grid, x.shape[-1] // self.grid)
        return functional.avg_pool2d(x, kernel).flatten(1)
