"""SPRC (Bai et al., "Sentence-level prompts benefit composed image retrieval", ICLR 2024), and SPN over it.

Over BLIP-2, in two passes: what the M queries make of the reference and the text becomes a prompt, which is
then read before the text, without an image. For the reference's tokens E and a text m:

    P = states of the queries over E and m
    q = l2(text_proj(state of [CLS] of the text that is P and then m))
    t_k = l2(vision_proj(state of query k over the target alone))        k = 1..M
    s = max_k q . t_k

In the second pass all positions, those of P too, go through the words' feed-forward. SPN (Feng et al.,
"Improving composed image retrieval via contrastive learning with scaling positives and negatives", ACM MM
2024) trains the same network on more data. Written from a description of weights and equations alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from cir_export.models.base import Terms, unit
from cir_export.models.blip2 import Blip2System
from cir_export.models.encoders.blip2 import Blip2

__all__ = ["Sprc"]


class Sprc(Blip2System):
    """A sentence that stands for the reference, before the text; M vectors of each image."""

    system: ClassVar[str] = "sprc"
    reference_is_gallery_row: ClassVar[bool] = False

    def __init__(self, blip2: Blip2) -> None:
        super().__init__(blip2)
        self.tokens_per_item = blip2.settings.queries

    def encode_gallery(self, images: Tensor) -> Tensor:
        """Float (n, M, D), each vector of unit length."""
        return unit(self.blip2.image_vectors(images))

    def encode_reference(self, images: Tensor) -> Tensor:
        """The ViT's tokens, (n, T, V)."""
        return self.blip2.image_tokens(images)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Word vectors, filled up to the context, and where there is one: (n, L, W + 1)."""
        return self.blip2.padded_words(tokens, lengths)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        prompt = self.blip2.fused(reference, text)
        words, seen = text[..., :-1], text[..., -1]
        seen = torch.cat([torch.ones_like(prompt[:, :, 0]), seen], 1)
        states = self.blip2.qformer.of_text(torch.cat([prompt, words], 1), seen)
        query = self.blip2.text_proj(states[:, prompt.shape[1]]).float()
        return Terms(unit(query)[:, None], None)
