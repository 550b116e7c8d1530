"""An image tower and a text tower whose embeddings share one space."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from cir_export.models.base import InParts

__all__ = ["Pair"]


class Pair(nn.Module, ABC):
    """Base of CLIP and its kin.

    Attributes:
        family: what a configuration calls it.
        embed_dim: D, of both embeddings.
        image_size: height and width of the images in pixels.
        visual: the image tower.
    """

    family: ClassVar[str]
    visual: nn.Module

    def __init__(self, embed_dim: int, image_size: int) -> None:
        super().__init__()
        self.embed_dim, self.image_size = embed_dim, image_size

    @abstractmethod
    def encode_image(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) to float (n, D), not normalised."""

    def image_in_parts(self, images: Tensor) -> InParts | None:  # noqa: ARG002
        """What `encode_image` gives, as sums over positions; None where it is no such sum."""
        return None

    @abstractmethod
    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens int (n, T) with lengths int (n,) to float (n, D), not normalised."""
