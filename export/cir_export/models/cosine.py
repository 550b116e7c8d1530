"""The base of systems that compose the query into one vector and rank by its cosine with the row.

    score(q, t) = < q, t > / (|q| |t|)

Where rows have unit length that is the plain dot product with l2(q). Where a system's composition reads
the raw embedding, the row keeps its length, so that a stored row can serve as a reference again, and the
one term gets weights of ones: (n . t) / sqrt(1 . t^2) is the cosine.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cir_export.models.base import Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import PixelEncoder, build_image_encoder
from cir_export.models.encoders.text import build_text_encoder
from cir_export.models.two_encoders import TwoEncoders
from cir_infer.errors import UsageError

__all__ = ["CosineModel", "EncoderSettings", "MapCosineModel"]


@dataclass(frozen=True)
class EncoderSettings:
    """Configuration of a system over one image encoder and one text encoder.

    Attributes:
        system: its name.
        image: see `PixelSettings` and `FeatureSettings`.
        text: see `TextSettings`.
        embedding_dim: D, of images and texts.
    """

    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = 512


class CosineModel(TwoEncoders):
    """One image encoder, one text encoder, a composition into one vector, cosine.

    A subclass adds its modules in `__init__`, its options by a subclass of `EncoderSettings`, and says in
    `compose_vector` how the query comes about.

    Attributes:
        unit_rows: whether gallery rows have unit length.
    """

    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    settings_type: ClassVar[type[EncoderSettings]] = EncoderSettings

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings.embedding_dim)
        self.image_encoder = build_image_encoder(settings.image, settings.embedding_dim)
        self.text_encoder = build_text_encoder(settings.text, settings.embedding_dim)
        self.unit_rows = self.image_encoder.to_unit
        self.weighted = not self.unit_rows

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CosineModel:
        """See `RetrievalModel.from_config`; keys: those of the system's settings."""
        settings = parse(cls.settings_type, config, "model")
        if settings.embedding_dim < 1:
            raise UsageError("model.embedding_dim: 0; expected at least 1")
        return cls(settings)

    @abstractmethod
    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """The query (n, D), of any length, from `encode_reference` and `encode_text`."""

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        query = unit(self.compose_vector(reference, text).float())[:, None]
        return Terms(query, torch.ones_like(query) if self.weighted else None)


class MapCosineModel(CosineModel):
    """One whose composition reads the convolutional map, so that a row cannot serve as the reference."""

    reference_is_gallery_row = False
    image_encoder: PixelEncoder

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        if not isinstance(self.image_encoder, PixelEncoder):
            raise UsageError(
                f"image.features: {self.system} reads convolutional maps; expected an encoder on pixels"
            )

    def encode_reference(self, images: Tensor) -> Tensor:
        """The last map, (n, C, h, w)."""
        return self.image_encoder.maps(images)[-1]
