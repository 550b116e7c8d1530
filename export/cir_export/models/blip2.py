"""BLIP-2's own score of an image and a text (Li et al., "BLIP-2", ICML 2023): a search by text.

Each of the M learnt queries makes one vector of an image; a text is the state of its first token:

    t_k = l2(vision_proj(state of query k over the image))        k = 1..M
    q = l2(text_proj(state of [CLS] over the text))
    s = max_k q . t_k

The reference image plays no part: BLIP-2's contrastive stage compares texts with images. `covr2` and `sprc`
are what was trained to compose over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.blip2 import Blip2, Blip2Settings

__all__ = ["Blip2System", "Blip2TextOnly"]


@dataclass(frozen=True)
class _Settings:
    """Configuration: the system's name, and the keys of `Blip2Settings`."""

    system: str
    blip2: dict  # type: ignore[type-arg]


class Blip2System(RetrievalModel):
    """Base of the systems over BLIP-2."""

    from_towers: ClassVar[bool] = True
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)

    def __init__(self, blip2: Blip2) -> None:
        super().__init__(blip2.settings.embed_dim)
        self.blip2 = blip2

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Blip2System:
        """See `RetrievalModel.from_config`; keys: `system`, and `blip2` with those of `Blip2Settings`."""
        settings = parse(_Settings, config, "model")
        return cls(Blip2(parse(Blip2Settings, settings.blip2, "blip2")))

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.blip2.visual]


class Blip2TextOnly(Blip2System):
    """A text against M vectors of each image."""

    system: ClassVar[str] = "blip2-text-only"
    composes: ClassVar[tuple[str, ...]] = ("text",)

    def __init__(self, blip2: Blip2) -> None:
        super().__init__(blip2)
        self.tokens_per_item = blip2.settings.queries

    def encode_gallery(self, images: Tensor) -> Tensor:
        """Float (n, M, D), each vector of unit length."""
        return unit(self.blip2.image_vectors(images))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        return unit(self.blip2.text_embedding(tokens, lengths))

    def compose(self, reference: Tensor, text: Tensor) -> Terms:  # noqa: ARG002
        """See `RetrievalModel.compose`."""
        return Terms(text[:, None], None)
