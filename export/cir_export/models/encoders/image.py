"""Image encoders: bytes or pre-extracted features to an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cir_export.models.base import InParts, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.pooling import GeM, GridPool, MeanPool
from cir_export.models.encoders.resnet import RESNETS, ResNet
from cir_export.models.encoders.small import SmallTrunk
from cir_export.models.encoders.trunk import Trunk
from cir_infer.errors import UsageError, shown

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "FeatureEncoder",
    "FeatureSettings",
    "PixelEncoder",
    "PixelNormalization",
    "PixelSettings",
    "build_image_encoder",
    "build_trunk",
    "map_sides",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelNormalization(nn.Module):
    """uint8 NHWC to normalised NCHW: (value / 255 - mean) / std.

    Part of the encoder, so that training, parity and the exported graph share it and a device receives
    bytes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UsageError(
                f"image: mean {shown(mean)} and std {shown(std)}; expected three values, std > 0"
            )
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) to float32 (n, 3, H, W); what was kept of a trunk, (n, K), stays as it is."""
        if images.ndim == 2:
            return images
        # TensorRT reads bytes only to cast them, so that comes first.
        return (images.float().permute(0, 3, 1, 2) / 255.0 - self.mean) / self.std


@dataclass(frozen=True)
class PixelSettings:
    """`image` of a configuration for models that see pixels.

    Attributes:
        trunk: "small" or a ResNet's name, see `RESNETS`.
        size: height and width of the trunk's input in pixels.
        pooling: "gem", "mean", or "grid" to keep position.
        grid: cells a side of grid pooling.
        channels: of the small trunk's stages.
        mean: of the channels of the training images, in 0..1.
        std: their standard deviation, in 0..1.
        normalize: whether the embedding is divided by its norm (TIRG's public models do not).
    """

    trunk: str = "resnet50"
    size: int = 224
    pooling: str = "gem"
    grid: int = 3
    channels: tuple[int, ...] = (32, 64, 128)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    normalize: bool = True


@dataclass(frozen=True)
class FeatureSettings:
    """`image` of a configuration for models on pre-extracted features.

    Attributes:
        features: F, the length of a feature vector.
        normalize: whether the embedding is divided by its norm (CIRR's public models do not).
    """

    features: int
    normalize: bool = False


class PixelEncoder(nn.Module):
    """Normalisation, trunk, pooling, linear layer, unit length (ARTEMIS, sec. 4: GeM and D = 512)."""

    def __init__(self, settings: PixelSettings, embedding_dim: int) -> None:
        super().__init__()
        self.trunk = build_trunk(settings)
        self.normalize = PixelNormalization(settings.mean, settings.std)
        width = self.trunk.channels[-1]
        if settings.pooling == "gem":
            self.pool: GeM | MeanPool | GridPool = GeM()
        elif settings.pooling == "mean":
            self.pool = MeanPool()
        else:
            self.pool = GridPool(settings.grid)
            width *= settings.grid**2
        self.project = nn.Linear(width, embedding_dim)
        self.to_unit = settings.normalize

    def maps(self, images: Tensor) -> list[Tensor]:
        """The maps of every stage of the trunk, fine to coarse: uint8 (n, H, W, 3) to (n, C_l, H_l, W_l).

        Of what was kept of the trunk, (n, K), the maps that are in it.
        """
        return self.trunk.maps(self.normalize(images))

    def embed(self, last_map: Tensor) -> Tensor:
        """The embedding (n, D) of a last map (n, C, h, w)."""
        rows: Tensor = self.project(self.pool(last_map)).float()
        return unit(rows) if self.to_unit else rows

    def in_parts(self, images: Tensor) -> InParts:
        """The embeddings as sums over the positions of the last map."""
        last_map: Tensor = self.trunk(self.normalize(images))
        rows = self.embed(last_map)
        parts = self.pool.shares(last_map, self.project.weight)
        return InParts(rows, parts.float(), self.project.bias.float().expand(rows.shape[0], -1))

    def pooled(self, images: Tensor) -> Tensor:
        """What the linear layer reads, as a map of the pool's cells (n, C, g, g): its own pooling."""
        last = self.maps(images)[-1]
        side = self.pool.grid if isinstance(self.pool, GridPool) else 1
        pooled: Tensor = self.pool(last)
        return pooled.view(-1, last.shape[1], side, side)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) to float (n, D), of unit length unless the settings say otherwise."""
        return self.embed(self.trunk(self.normalize(images)))


class FeatureEncoder(nn.Module):
    """A linear layer over features that were extracted beforehand."""

    def __init__(self, settings: FeatureSettings, embedding_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(settings.features, embedding_dim)
        self.to_unit = settings.normalize

    def in_parts(self, features: Tensor) -> None:  # noqa: ARG002
        """Features have no positions."""
        return

    def forward(self, features: Tensor) -> Tensor:
        """From float (n, F) to float (n, D)."""
        rows: Tensor = self.project(features).float()
        return unit(rows) if self.to_unit else rows


def build_trunk(settings: PixelSettings) -> Trunk:
    """The trunk alone, for systems that read convolutional maps.

    Raises:
        UsageError: a setting is unknown or does not fit the others.
    """
    if settings.pooling not in ("gem", "mean", "grid"):
        raise UsageError(f"image.pooling: {shown(settings.pooling)} is not known; expected gem, mean or grid")
    if settings.trunk != "small" and settings.trunk not in RESNETS:
        raise UsageError(
            f"image.trunk: {shown(settings.trunk)} is not known; expected small, {', '.join(RESNETS)}"
        )
    trunk: Trunk = SmallTrunk(settings.channels) if settings.trunk == "small" else ResNet(settings.trunk)
    side = settings.size
    for _ in range(len(trunk.channels) if settings.trunk == "small" else 5):
        side = (side + 1) // 2
    if settings.size < 1 or (settings.pooling == "grid" and (settings.grid < 1 or side % settings.grid)):
        raise UsageError(
            f"image.size: {settings.size} gives a map of {side} x {side}; expected a multiple of the grid's "
            f"{settings.grid}"
        )
    return trunk


def map_sides(trunk: Trunk, size: int) -> list[int]:
    """The side of each stage's map of an image of size x size, fine to coarse."""
    side = size if isinstance(trunk, SmallTrunk) else (size + 1) // 2  # a ResNet's first convolution
    sides = []
    for _ in trunk.channels:
        side = (side + 1) // 2
        sides.append(side)
    return sides


def build_image_encoder(values: Mapping[str, Any], embedding_dim: int) -> PixelEncoder | FeatureEncoder:
    """The encoder that `image` of a configuration describes: on features if it has that key, else on pixels.

    Raises:
        UsageError: a key or value does not fit.
    """
    if isinstance(values, Mapping) and "features" in values:
        return FeatureEncoder(parse(FeatureSettings, values, "image"), embedding_dim)
    return PixelEncoder(parse(PixelSettings, values, "image"), embedding_dim)
