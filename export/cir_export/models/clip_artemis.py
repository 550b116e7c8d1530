"""ARTEMIS' two attentions over a CLIP that stays as it is: a head of one's own on encoders of others.

The terms are those of `artemis`; r, t and m are CLIP's embeddings, divided by their lengths:

    IS = < l2(a o r), l2(a o t) >      a = A_IS(m)
    EM = < l2(T m),   l2(b o t) >      b = A_EM(m)

CLIP's two encoders share a space already. So it starts where that is: T as the identity and both attentions
flat, which is the sum of the two cosines, r . t + m . t; training departs from there.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from cir_export.models.artemis import Attention, Attentions
from cir_export.models.base import InParts, Terms, unit
from cir_export.models.clip4cir import Clip4CirSum
from cir_export.models.encoders.clip import Clip

__all__ = ["ArtemisOverClip"]


class ArtemisOverClip(Attentions, Clip4CirSum):
    """IS and EM over CLIP's embeddings of unit length."""

    system: ClassVar[str] = "clip-artemis"
    term_names: ClassVar[tuple[str, ...]] = ("implicit_similarity", "explicit_matching")
    encoders_in_trunks: ClassVar[bool] = True

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        dim = clip.settings.embed_dim
        self.attention_is, self.attention_em = Attention(dim), Attention(dim)
        self.transform = nn.Linear(dim, dim)
        nn.init.eye_(self.transform.weight)
        for layer in (self.attention_is.out, self.attention_em.out, self.transform):
            nn.init.zeros_(layer.bias)
        for attention in (self.attention_is, self.attention_em):
            nn.init.zeros_(attention.out.weight)

    def encode_gallery(self, images: Tensor) -> Tensor:
        """CLIP's image features of unit length, (n, D)."""
        return unit(super().encode_gallery(images))

    def encode_gallery_in_parts(self, images: Tensor) -> InParts:
        """See `RetrievalModel.encode_gallery_in_parts`."""
        found = super().encode_gallery_in_parts(images)
        return found._replace(rows=unit(found.rows))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """CLIP's text features of unit length, (n, D)."""
        return unit(super().encode_text(tokens, lengths))

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return self.both_terms(reference, text)

    def trunks(self) -> list[nn.Module]:
        """All of CLIP: the head alone is trained in the frozen epochs."""
        return [self.clip]
