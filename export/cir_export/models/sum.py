"""The sum of an image's and a text's embedding, over any pair of towers; and either of them alone.

    sum:         q = l2(r + m)
    image-only:  q = l2(r)
    text-only:   q = l2(m)

for the embeddings r of the reference and m of the text; the score is the cosine of q and the target's.

With raw embeddings, as the towers give them, this is BGE-VL (Zhou et al., "MegaPairs", ACL 2025), stage 1 of
CLIP4Cir and UniIR's score fusion, which were trained so; rows are then stored raw, so that a stored row can
serve as the reference again. With `unit`, both are divided by their lengths first, which is the plain way
with towers that nobody trained for it, whose lengths mean nothing to each other; rows have unit length then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import InParts, RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.pair import Pair
from cir_export.models.encoders.pairs import build_pair

__all__ = ["Sum", "SumImageOnly", "SumSettings", "SumTextOnly"]


@dataclass(frozen=True)
class SumSettings:
    """Configuration of the three.

    Attributes:
        system: its name.
        pair: the towers, see `build_pair`.
        unit: whether both embeddings have unit length before they are summed.
    """

    system: str
    pair: dict  # type: ignore[type-arg]
    unit: bool = False


class Sum(RetrievalModel):
    """The sum of both embeddings."""

    system: ClassVar[str] = "sum"
    from_towers: ClassVar[bool] = True
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)

    def __init__(self, pair: Pair, unit_embeddings: bool) -> None:
        super().__init__(pair.embed_dim)
        self.pair = pair
        self.unit_embeddings = unit_embeddings
        self.weighted = not unit_embeddings

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sum:
        """See `RetrievalModel.from_config`; keys: those of `SumSettings`."""
        settings = parse(SumSettings, config, "model")
        return cls(build_pair(settings.pair), settings.unit)

    def encode_gallery(self, images: Tensor) -> Tensor:
        """See `RetrievalModel.encode_gallery`."""
        return self._embedding(self.pair.encode_image(images))

    def encode_gallery_in_parts(self, images: Tensor) -> InParts:
        """See `RetrievalModel.encode_gallery_in_parts`."""
        found = self.pair.image_in_parts(images)
        return found._replace(rows=self._embedding(found.rows))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        return self._embedding(self.pair.encode_text(tokens, lengths))

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """The query (n, D), of any length."""
        return reference + text

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        query = unit(self.compose_vector(reference, text).float())[:, None]
        return Terms(query, torch.ones_like(query) if self.weighted else None)

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.pair.visual]

    def _embedding(self, raw: Tensor) -> Tensor:
        return unit(raw.float()) if self.unit_embeddings else raw.float()


class SumImageOnly(Sum):
    """The reference alone: search by image, and what the sum is to be compared with."""

    system: ClassVar[str] = "sum-image-only"
    composes: ClassVar[tuple[str, ...]] = ("reference",)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:  # noqa: ARG002
        """See `Sum.compose_vector`."""
        return reference


class SumTextOnly(Sum):
    """The text alone: search by text, and what the sum is to be compared with."""

    system: ClassVar[str] = "sum-text-only"
    composes: ClassVar[tuple[str, ...]] = ("text",)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:  # noqa: ARG002
        """See `Sum.compose_vector`."""
        return text
