"""CoVR-2 over BLIP-2 (Ventura et al., "CoVR-2", TPAMI 2024): the mean of the queries, one dot product.

    q = mean_k l2(text_proj(state of query k over the reference's tokens and the text))
    t = mean_k l2(vision_proj(state of query k over the target alone))
    s = q . t

Neither mean has unit length, and none is given to it. On CIRR the authors take the maximum over all pairs of
queries instead, which is another score and not this one; on FashionIQ and CIRCO they take this.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from cir_export.models.base import Terms, unit
from cir_export.models.blip2 import Blip2System

__all__ = ["Covr2"]


class Covr2(Blip2System):
    """The reference's tokens and the text, seen together."""

    system: ClassVar[str] = "covr2"
    reference_is_gallery_row: ClassVar[bool] = False

    def encode_gallery(self, images: Tensor) -> Tensor:
        """Float (n, D), shorter than a unit vector."""
        return unit(self.blip2.image_vectors(images)).mean(1)

    def encode_reference(self, images: Tensor) -> Tensor:
        """The ViT's tokens, (n, T, V)."""
        return self.blip2.image_tokens(images)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Word vectors, filled up to the context, and where there is one: (n, L, W + 1)."""
        return self.blip2.padded_words(tokens, lengths)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        states = self.blip2.fused(reference, text)
        return Terms(unit(self.blip2.text_proj(states).float()).mean(1)[:, None], None)
