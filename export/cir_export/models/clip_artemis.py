"""ARTEMIS' two attentions over encoders that stay as they are: a head of one's own on encoders of others.

The terms are those of `artemis`; r, t and m are the encoders' embeddings, divided by their lengths:

    IS = < l2(a o r), l2(a o t) >      a = A_IS(m)
    EM = < l2(T m),   l2(b o t) >      b = A_EM(m)

The two encoders of a CLIP or a SigLIP share a space already. So it starts where that is: T as the identity
and both attentions flat, which is the sum of the two cosines, r . t + m . t; training departs from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cir_export.models.artemis import Attention, Attentions
from cir_export.models.base import InParts, Terms, unit
from cir_export.models.clip4cir import Clip4CirSum
from cir_export.models.configuration import parse
from cir_export.models.encoders.clip import Clip
from cir_export.models.encoders.pair import Pair
from cir_export.models.encoders.pairs import build_pair
from cir_export.models.sum import Sum

__all__ = ["ArtemisOverClip", "ArtemisOverPair"]


class _Head(Attentions):
    """IS and EM over embeddings of unit length."""

    term_names: ClassVar[tuple[str, ...]] = ("implicit_similarity", "explicit_matching")
    encoders_in_trunks: ClassVar[bool] = True

    def begin_as_sum(self, dim: int) -> None:
        """Make the head's modules, as the sum of the two cosines."""
        self.attention_is, self.attention_em = Attention(dim), Attention(dim)
        self.transform = nn.Linear(dim, dim)
        nn.init.eye_(self.transform.weight)
        for layer in (self.attention_is.out, self.attention_em.out, self.transform):
            nn.init.zeros_(layer.bias)
        for attention in (self.attention_is, self.attention_em):
            nn.init.zeros_(attention.out.weight)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return self.both_terms(reference, text)


class ArtemisOverClip(_Head, Clip4CirSum):
    """Over a CLIP whose sizes a configuration says, and which a first stage may have trained."""

    system: ClassVar[str] = "clip-artemis"

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip)
        self.begin_as_sum(clip.embed_dim)

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

    def trunks(self) -> list[nn.Module]:
        """All of CLIP: the head alone is trained in the frozen epochs."""
        return [self.clip]


@dataclass(frozen=True)
class _Settings:
    """Configuration.

    Attributes:
        system: its name.
        pair: the towers, see `build_pair`.
    """

    system: str
    pair: dict  # type: ignore[type-arg]


class ArtemisOverPair(_Head, Sum):
    """Over any pair of towers, as a folder has them."""

    system: ClassVar[str] = "pair-artemis"
    trains_head: ClassVar[bool] = True

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair, unit_embeddings=True)
        self.weighted = True
        self.begin_as_sum(pair.embed_dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ArtemisOverPair:
        """See `RetrievalModel.from_config`; keys: `pair`."""
        return cls(build_pair(parse(_Settings, config, "model").pair))

    def trunks(self) -> list[nn.Module]:
        """Both towers: the head alone is trained in the frozen epochs."""
        return [self.pair]
