"""What systems have in common that were trained over an image encoder of their own, and a text encoder."""

from __future__ import annotations

from torch import Tensor, nn

from cir_export.models.base import InParts, RetrievalModel
from cir_export.models.encoders.image import FeatureEncoder, PixelEncoder
from cir_export.models.encoders.text import TextEncoder

__all__ = ["OneImageEncoder", "TwoEncoders"]


class OneImageEncoder(RetrievalModel):
    """A gallery row is what the image encoder gives, and a sum over positions where that is one."""

    image_encoder: PixelEncoder | FeatureEncoder

    def encode_gallery(self, images: Tensor) -> Tensor:
        """See `RetrievalModel.encode_gallery`."""
        rows: Tensor = self.image_encoder(images)
        return rows

    def encode_gallery_in_parts(self, images: Tensor) -> InParts | None:
        """See `RetrievalModel.encode_gallery_in_parts`."""
        return self.image_encoder.in_parts(images)

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.image_encoder.trunk] if isinstance(self.image_encoder, PixelEncoder) else []


class TwoEncoders(OneImageEncoder):
    """A text is what the text encoder gives, one vector."""

    text_encoder: TextEncoder

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        text: Tensor = self.text_encoder(tokens, lengths)
        return text
