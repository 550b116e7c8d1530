"""CIRPLANT (Liu et al., ICCV 2021).

"Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models".
A transformer reads the words and, as its last token, the reference's feature; what stands there afterwards is
the query:

    tokens = [x_1 + p_1, ..., x_T + p_T, W r]          x: word vectors, p: their places
    q = l2(V LayerNorm(Transformer(tokens)_last))      t = l2(image encoder)

The paper initialises a BERT of 12 layers with OSCAR's weights and keeps the image network frozen. Here
the sizes are settings, the defaults those of BERT base; blocks are pre-normalised, so of BERT's own
weights only the word vectors fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import build_image_encoder
from cir_export.models.encoders.transformer import Transformer
from cir_export.models.encoders.words import padded_words, read_words
from cir_export.models.two_encoders import OneImageEncoder
from cir_infer.errors import UsageError

__all__ = ["Cirplant", "CirplantSettings", "CirplantTextSettings"]


@dataclass(frozen=True)
class CirplantTextSettings:
    """`text` of CIRPLANT's configuration.

    Attributes:
        vocabulary_size: V, special tokens included.
        width: of the transformer and of a word vector.
        layers: of the transformer.
        heads: of its attention.
        max_words: longest text in tokens, special tokens included; what stands beyond is not read.
    """

    vocabulary_size: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    max_words: int = 64


@dataclass(frozen=True)
class CirplantSettings:
    """Configuration of CIRPLANT.

    Attributes:
        system: "cirplant".
        image: see `PixelSettings` and `FeatureSettings`.
        text: see `CirplantTextSettings`.
        embedding_dim: D, of a row.
    """

    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = 512


class Cirplant(OneImageEncoder):
    """See the module's docstring."""

    system: ClassVar[str] = "cirplant"
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)

    def __init__(self, settings: CirplantSettings) -> None:
        text = parse(CirplantTextSettings, settings.text, "text")
        dim, width = settings.embedding_dim, text.width
        if min(dim, text.vocabulary_size, width, text.layers, text.heads, text.max_words) < 1:
            raise UsageError("model: a size is 0; expected at least 1")
        if width % text.heads:
            raise UsageError(f"text.heads: {text.heads} do not divide width {width}")
        super().__init__(dim)
        self.image_encoder = build_image_encoder(settings.image, dim)
        self.weighted = not self.image_encoder.to_unit
        self.embed = nn.Embedding(text.vocabulary_size, width)
        self.places = nn.Parameter(torch.randn(text.max_words, width) * 0.02)
        self.image_token = nn.Linear(dim, width)
        self.transformer = Transformer(width, text.layers, text.heads, "gelu")
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, dim)
        self.max_words = text.max_words

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Cirplant:
        """See `RetrievalModel.from_config`; keys: those of `CirplantSettings`."""
        return cls(parse(CirplantSettings, config, "model"))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """How many words, then their vectors, zero beyond the last: (n, 1 + max_words * width)."""
        return padded_words(self.embed(tokens), lengths, self.max_words)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        words, mask = read_words(text, self.max_words, shorten=self.training)
        seen = self.image_token(reference.to(words.dtype))[:, None]
        mask = torch.cat([mask, mask.new_zeros(mask.shape[0], 1)], 1)
        read = self.transformer(
            torch.cat([words + self.places[: words.shape[1]], seen], 1), mask[:, None, None]
        )
        query = unit(self.out(self.norm(read[:, -1])).float())[:, None]
        return Terms(query, torch.ones_like(query) if self.weighted else None)
