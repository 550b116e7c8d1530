"""A small residual trunk that trains on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cir_export.models.encoders.trunk import Trunk

__all__ = ["SmallTrunk"]


class _Stage(nn.Module):
    """Halves the map: a strided convolution, then one with a shortcut around it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(x)))  # type: ignore[no-any-return]


class SmallTrunk(Trunk):
    """One stage for each number of channels, each at half the resolution of the one before.

    Attributes:
        channels: the stages' channels, at strides 2, 4, 8, ...
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.stages = nn.ModuleList(
            _Stage(inputs, outputs)
            for inputs, outputs in zip((3, *self.channels[:-1]), self.channels, strict=True)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages_of(self, x: Tensor) -> list[Tensor]:
        """See `Trunk.stages_of`."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
