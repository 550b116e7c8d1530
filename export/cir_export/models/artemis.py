"""ARTEMIS (Delmas et al., ICLR 2022) and the baselines of its ablation, which share its encoders.

"ARTEMIS: Attention-based Retrieval with Text-Explicit Matching and Implicit Similarity"; Table 1.

For text m, reference r and gallery row t (eq. 1, 2, 4; o is elementwise, l2 divides by the norm):

    IS = < l2(a o r), l2(a o t) >      a = A_IS(m)
    EM = < l2(T m),   l2(b o t) >      b = A_EM(m)
    score = IS + EM

Both attentions are Linear, ReLU, Linear, softmax over the D dimensions; T is linear. As terms over t,
with a and b divided by their maximum, which leaves the score as it is:

    IS: n = a o a o r / |a o r|,  w = a o a        EM: n = b o l2(T m),  w = b o b
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import FeatureEncoder, PixelEncoder, build_image_encoder
from cir_export.models.encoders.text import TextEncoder, build_text_encoder
from cir_export.models.two_encoders import TwoEncoders
from cir_infer.errors import UsageError

__all__ = [
    "Artemis",
    "ArtemisModules",
    "Attention",
    "Attentions",
    "ExplicitMatchingOnly",
    "ImageOnly",
    "ImplicitSimilarityOnly",
    "LateFusion",
    "TextOnly",
]


class Attention(nn.Module):
    """Softmax over dimensions of a two-layer perceptron, divided by its maximum: values in (0, 1]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, text: Tensor) -> Tensor:
        """From float (n, D) to float32 (n, D), 1 at the largest."""
        logits: Tensor = self.out(torch.relu(self.hidden(text))).float()
        # exp(z - max z) is softmax(z) / max softmax(z); the score does not depend on the divisor.
        return torch.exp(logits - logits.amax(-1, keepdim=True).detach())


class Attentions(RetrievalModel):
    """Both terms of a system that has the two attentions and the linear transform."""

    attention_is: Attention
    attention_em: Attention
    transform: nn.Linear

    def implicit_similarity(self, reference: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and weight of IS, eq. 1: two (n, D)."""
        attention = self.attention_is(text)
        return attention * unit(attention * reference.float()), attention * attention

    def explicit_matching(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Numerator and weight of EM, eq. 2: two (n, D)."""
        attention = self.attention_em(text)
        return attention * unit(self.transform(text).float()), attention * attention

    def both_terms(self, reference: Tensor, text: Tensor) -> Terms:
        """IS and EM, eq. 4, of two (n, D)."""
        (n_is, w_is), (n_em, w_em) = self.implicit_similarity(reference, text), self.explicit_matching(text)
        return Terms(torch.stack([n_is, n_em], 1), torch.stack([w_is, w_em], 1))


class ArtemisModules(Attentions, TwoEncoders):
    """The modules that ARTEMIS and its ablation share, under the same names; they differ in `compose`."""

    def __init__(
        self,
        embedding_dim: int,
        image_encoder: PixelEncoder | FeatureEncoder,
        text_encoder: TextEncoder,
    ) -> None:
        super().__init__(embedding_dim)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.attention_is = Attention(embedding_dim)
        self.attention_em = Attention(embedding_dim)
        self.transform = nn.Linear(embedding_dim, embedding_dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ArtemisModules:
        """See `RetrievalModel.from_config`; keys: system, embedding_dim, image, text."""
        settings = parse(_Settings, config, "model")
        if settings.embedding_dim < 1:
            raise UsageError("model.embedding_dim: 0; expected at least 1")
        return cls(
            settings.embedding_dim,
            build_image_encoder(settings.image, settings.embedding_dim),
            build_text_encoder(settings.text, settings.embedding_dim),
        )

    def trained_before(self) -> list[nn.Module]:
        """See `RetrievalModel.trained_before`: the trunk and the word vectors (ARTEMIS, sec. 4)."""
        return [*self.trunks(), self.text_encoder.embed]


@dataclass(frozen=True)
class _Settings:
    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = field(default=512)


class Artemis(ArtemisModules):
    """The full model: IS + EM, eq. 4."""

    system: ClassVar[str] = "artemis"
    term_names: ClassVar[tuple[str, ...]] = ("implicit_similarity", "explicit_matching")
    weighted = True

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return self.both_terms(reference, text)


class ImplicitSimilarityOnly(ArtemisModules):
    """IS alone."""

    system: ClassVar[str] = "is-only"
    unused: ClassVar[tuple[str, ...]] = ("attention_em", "transform")
    term_names: ClassVar[tuple[str, ...]] = ("implicit_similarity",)
    weighted = True

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        numerator, weight = self.implicit_similarity(reference, text)
        return Terms(numerator[:, None], weight[:, None])


class ExplicitMatchingOnly(ArtemisModules):
    """EM alone: the reference is not read."""

    system: ClassVar[str] = "em-only"
    unused: ClassVar[tuple[str, ...]] = ("attention_is",)
    term_names: ClassVar[tuple[str, ...]] = ("explicit_matching",)
    weighted = True
    composes: ClassVar[tuple[str, ...]] = ("text",)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:  # noqa: ARG002
        """See `RetrievalModel.compose`."""
        numerator, weight = self.explicit_matching(text)
        return Terms(numerator[:, None], weight[:, None])


class ImageOnly(ArtemisModules):
    """r . t: the text is not read."""

    system: ClassVar[str] = "image-only"
    unused: ClassVar[tuple[str, ...]] = ("text_encoder", "attention_is", "attention_em", "transform")
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    composes: ClassVar[tuple[str, ...]] = ("reference",)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:  # noqa: ARG002
        """See `RetrievalModel.compose`."""
        return Terms(reference[:, None], None)


class TextOnly(ArtemisModules):
    """m . t: the reference is not read."""

    system: ClassVar[str] = "text-only"
    unused: ClassVar[tuple[str, ...]] = ("attention_is", "attention_em", "transform")
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    composes: ClassVar[tuple[str, ...]] = ("text",)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:  # noqa: ARG002
        """See `RetrievalModel.compose`."""
        return Terms(text[:, None], None)


class LateFusion(ArtemisModules):
    """l2(r + m) . t."""

    system: ClassVar[str] = "late-fusion"
    unused: ClassVar[tuple[str, ...]] = ("attention_is", "attention_em", "transform")
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return Terms(unit(reference + text)[:, None], None)
