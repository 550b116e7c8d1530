"""ResNet trunks (He et al., CVPR 2016) whose state-dict names are torchvision's, without its fc layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cir_export.models.encoders.trunk import Trunk

__all__ = ["RESNETS", "ResNet", "resnet_name"]


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))  # type: ignore[no-any-return]


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, groups: int = 1, group_width: int = 64) -> None:
        super().__init__()
        inner = width * group_width // 64 * groups
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        # The stride is here, not in conv1: ResNet v1.5, as in torchvision.
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + self.downsample(x))  # type: ignore[no-any-return]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class _Shape(NamedTuple):
    """Blocks a stage, their kind, and for ResNeXt and Wide ResNet the groups of the middle convolution."""

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64


RESNETS: dict[str, _Shape] = {
    "resnet18": _Shape((2, 2, 2, 2), bottleneck=False),
    "resnet34": _Shape((3, 4, 6, 3), bottleneck=False),
    "resnet50": _Shape((3, 4, 6, 3)),
    "resnet101": _Shape((3, 4, 23, 3)),
    "resnet152": _Shape((3, 8, 36, 3)),
    "resnext50_32x4d": _Shape((3, 4, 6, 3), groups=32, group_width=4),
    "resnext101_32x8d": _Shape((3, 4, 23, 3), groups=32, group_width=8),
    "resnext101_64x4d": _Shape((3, 4, 23, 3), groups=64, group_width=4),
    "wide_resnet50_2": _Shape((3, 4, 6, 3), group_width=128),
    "wide_resnet101_2": _Shape((3, 4, 23, 3), group_width=128),
}
"""Every ResNet of torchvision by its name there."""


def resnet_name(weights: Mapping[str, Tensor]) -> str | None:
    """Which ResNet these weights are, by torchvision's names without fc; None if it is none."""
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    return next((name for name in RESNETS if _shapes(name) == found), None)


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in ResNet(name).state_dict().items()}


class ResNet(Trunk):
    """A ResNet up to its last convolutional map.

    Attributes:
        channels: the four stages' channels, at strides 4, 8, 16 and 32.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        shape = RESNETS[name]
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        expansion = _Bottleneck.expansion if shape.bottleneck else _BasicBlock.expansion
        self.channels = tuple(expansion * width for width in (64, 128, 256, 512))
        inputs = 64
        stages = []
        for width, depth, stride in zip((64, 128, 256, 512), shape.depths, (1, 2, 2, 2), strict=True):
            blocks: list[nn.Module] = []
            for index in range(depth):
                step = stride if index == 0 else 1
                if shape.bottleneck:
                    blocks.append(_Bottleneck(inputs, width, step, shape.groups, shape.group_width))
                else:
                    blocks.append(_BasicBlock(inputs, width, step))
                inputs = expansion * width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages_of(self, x: Tensor) -> list[Tensor]:
        """See `Trunk.stages_of`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps
