"""An image tower and a text tower whose embeddings share one space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from cir_export.models.base import InParts
from cir_export.models.encoders.image import PixelNormalization

__all__ = ["ImageTower", "Pair"]


class ImageTower(nn.Module, ABC):
    """Normalised pixels (n, 3, H, W) to embeddings (n, D), by calling it."""

    @abstractmethod
    def in_parts(self, x: Tensor) -> InParts:
        """The embeddings as sums over positions."""


class Pair(nn.Module, ABC):
    """Base of CLIP and its kin.

    Attributes:
        family: what a configuration calls it.
        embed_dim: D, of both embeddings.
        image_size: height and width of the images in pixels.
        normalize: from pixels to what the image tower reads.
        visual: the image tower.
    """

    family: ClassVar[str]
    normalize: PixelNormalization
    visual: ImageTower

    def __init__(self, embed_dim: int, image_size: int) -> None:
        super().__init__()
        self.embed_dim, self.image_size = embed_dim, image_size

    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) to float (n, D), not normalised. Embeddings that were kept stay as they are."""
        if images.ndim == 2:
            return images
        features: Tensor = self.visual(self.normalize(images))
        return features

    def image_in_parts(self, images: Tensor) -> InParts:
        """What `encode_image` gives, as sums over positions."""
        return InParts(*(part.float() for part in self.visual.in_parts(self.normalize(images))))

    @abstractmethod
    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens int (n, T) with lengths int (n,) to float (n, D), not normalised."""
