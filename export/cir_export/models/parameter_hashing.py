"""Parameter hashing (Noh et al., CVPR 2016; a baseline of Vo et al., CVPR 2019).

The text is hashed into the weights of a fully connected layer over the image's pooled map x, in place of
the encoder's own last layer (Noh et al., eq. 4 to 6):

    p = W m in R^K        M_ij = sign(i, j) * p[hash(i, j)]        q = M x

The hash and its signs are drawn once from a fixed seed and stored with the weights. The reference is x,
so a gallery row cannot serve as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import EncoderSettings, MapCosineModel
from cir_infer.errors import UsageError

__all__ = ["ParameterHashing", "ParameterHashingSettings"]


@dataclass(frozen=True)
class ParameterHashingSettings(EncoderSettings):
    """Configuration of parameter hashing.

    Attributes:
        candidates: K, the weights that the text gives.
    """

    candidates: int = 4096


class ParameterHashing(MapCosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "parameter-hashing"
    settings_type: ClassVar[type[EncoderSettings]] = ParameterHashingSettings
    slots: Tensor
    signs: Tensor

    def __init__(self, settings: ParameterHashingSettings) -> None:
        super().__init__(settings)
        if settings.candidates < 1:
            raise UsageError("model.candidates: 0; expected at least 1")
        self.candidates = nn.Linear(settings.embedding_dim, settings.candidates)
        shape = (settings.embedding_dim, self.image_encoder.project.in_features)
        dice = torch.Generator().manual_seed(0)
        slots = torch.randint(settings.candidates, shape, generator=dice, dtype=torch.int32)
        self.register_buffer("slots", slots)
        # As floats: TensorRT takes an int8 constant for a quantised one and refuses it.
        self.register_buffer("signs", 2.0 * torch.randint(2, shape, generator=dice) - 1)

    def encode_reference(self, images: Tensor) -> Tensor:
        """The pooled map, (n, C)."""
        pooled: Tensor = self.image_encoder.pool(self.image_encoder.maps(images)[-1])
        return pooled

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        weights = self.candidates(text)[:, self.slots.long()] * self.signs
        return (weights @ reference[:, :, None]).squeeze(2)  # type: ignore[no-any-return]
