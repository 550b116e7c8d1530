"""From a convolutional map to a vector, and how a linear layer over that vector is a sum over positions.

Each pool has `shares(x, weight)`: for a map x (n, C, h, w) and a linear layer's weight (D, K) over the K
pooled values, float (n, h, w, D) whose sum over positions is `forward(x) @ weight.T`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GeM", "GridPool", "MeanPool", "averaged"]


def averaged(x: Tensor, side: int) -> Tensor:
    """A map (n, C, h, h) averaged to side x side cells, of which h is a multiple."""
    return functional.avg_pool2d(x, x.shape[2] // side) if x.shape[2] > side else x


class GeM(nn.Module):
    """Generalised mean over positions with p = 3 fixed (Radenovic et al., TPAMI 2019), clamped at 1e-6.

    In float32 whatever the autocast type: 1e-6 cubed is zero in float16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C)."""
        # A tensor without memory has shapes alone, and no autocast type.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            x = x.float().clamp_min(1e-6)
            return (x * x * x).mean((-2, -1)).pow(1.0 / 3.0)

    def shares(self, x: Tensor, weight: Tensor) -> Tensor:
        """See the module. g is homogeneous of degree one, so it is the sum of x dg/dx, x^3 / (P g^2)."""
        pooled = self(x)
        x = x.float().clamp_min(1e-6)
        shares: Tensor = x * x * x / (x.shape[-2] * x.shape[-1] * (pooled * pooled)[:, :, None, None])
        return shares.permute(0, 2, 3, 1) @ weight.float().T


class MeanPool(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C)."""
        return x.mean((-2, -1))

    def shares(self, x: Tensor, weight: Tensor) -> Tensor:
        """See the module."""
        return (x / (x.shape[-2] * x.shape[-1])).permute(0, 2, 3, 1) @ weight.T


class GridPool(nn.Module):
    """Averages each cell of a grid x grid division and keeps all cells, so that position survives."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to (n, C * grid * grid); H and W are multiples of the grid."""
        kernel = (x.shape[-2] // self.grid, x.shape[-1] // self.grid)
        return functional.avg_pool2d(x, kernel).flatten(1)

    def shares(self, x: Tensor, weight: Tensor) -> Tensor:
        """See the module: each cell of the grid has weights of its own."""
        n, c, h, w = x.shape
        side, high, wide = self.grid, h // self.grid, w // self.grid
        cells = x.view(n, c, side, high, side, wide).permute(2, 4, 0, 3, 5, 1).flatten(2, 4).flatten(0, 1)
        of_cells = weight.view(-1, c, side * side).permute(2, 1, 0)
        shares = (cells / (high * wide)) @ of_cells
        shares = shares.view(side, side, n, high, wide, -1).permute(2, 0, 3, 1, 4, 5)
        return shares.reshape(n, h, w, -1)
