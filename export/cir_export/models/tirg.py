"""TIRG (Vo et al., "Composing Text and Image for Image Retrieval: An Empirical Odyssey", CVPR 2019).

For a reference r and a text m, [r; m] their concatenation, s the sigmoid (eq. 1 to 3):

    q = w_g * s(W_g2 ReLU([r; m])) o r + w_r * W_r3 ReLU(W_r2 ReLU([r; m]))       w_g = 1, w_r = 10 at first

with a batch norm of the concatenation in front of each branch, as in the authors' code (`gate = "code"`). The
paper and the authors' slides draw the gate with two layers, s(W_g2 ReLU(W_g1 [r; m])): `gate = "paper"`, with
the batch norm between them and 1.05 M parameters more than Table 7 of ARTEMIS counts. The score is the
cosine of q and the row. `TirgLastConvolution` does the same on the trunk's last map, with 3 x 3
convolutions and the text at every position; then pooling and the last linear layer make the vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import CosineModel, EncoderSettings, MapCosineModel
from cir_infer.errors import UsageError, shown

__all__ = ["Tirg", "TirgImageOnly", "TirgLastConvolution", "TirgSettings", "TirgTextOnly"]

_INITIAL_WEIGHTS = (1.0, 10.0)


@dataclass(frozen=True)
class TirgSettings(EncoderSettings):
    """Configuration of TIRG.

    Attributes:
        score: "cosine", or "dot" with rows that are not of unit length, as in ARTEMIS' own TIRG on
            pre-extracted features.
        gate: "code" or "paper", see the module's docstring.
    """

    score: str = "cosine"
    gate: str = "code"


class Tirg(CosineModel):
    """TIRG on vectors."""

    system: ClassVar[str] = "tirg"
    settings_type: ClassVar[type[EncoderSettings]] = TirgSettings

    def __init__(self, settings: TirgSettings) -> None:
        super().__init__(settings)
        if settings.score not in ("cosine", "dot"):
            raise UsageError(f"model.score: {shown(settings.score)} is not known; expected 'cosine' or 'dot'")
        if settings.score == "dot":
            self.weighted = False
        dim = settings.embedding_dim
        self.branch_weights = nn.Parameter(torch.tensor(_INITIAL_WEIGHTS))
        if settings.gate not in ("code", "paper"):
            raise UsageError(f"model.gate: {shown(settings.gate)}; expected code or paper")
        first = [nn.Linear(2 * dim, 2 * dim)] if settings.gate == "paper" else []
        self.gate = nn.Sequential(*first, nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.residual = nn.Sequential(
            nn.BatchNorm1d(2 * dim),
            nn.ReLU(),
            nn.Linear(2 * dim, 2 * dim),
            nn.ReLU(),
            nn.Linear(2 * dim, dim),
        )

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        both = torch.cat([reference, text], 1)
        gated = torch.sigmoid(self.gate(both)) * reference
        query: Tensor = self.branch_weights[0] * gated + self.branch_weights[1] * self.residual(both)
        return query


class TirgLastConvolution(MapCosineModel):
    """TIRG on the last convolutional map: a gallery row cannot serve as the reference."""

    system: ClassVar[str] = "tirg-last-convolution"

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        channels, dim = self.image_encoder.trunk.channels[-1], settings.embedding_dim
        self.branch_weights = nn.Parameter(torch.tensor(_INITIAL_WEIGHTS))
        self.gate = _map_branch(channels, dim)
        self.residual = _map_branch(channels, dim)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        tiled = text[:, :, None, None].expand(-1, -1, reference.shape[2], reference.shape[3])
        both = torch.cat([reference, tiled], 1)
        gated = torch.sigmoid(self.gate(both)) * reference
        return self.image_encoder.embed(
            self.branch_weights[0] * gated + self.branch_weights[1] * self.residual(both)
        )


class TirgImageOnly(CosineModel):
    """The reference's embedding, with TIRG's encoders and no others."""

    system: ClassVar[str] = "tirg-image-only"
    unused: ClassVar[tuple[str, ...]] = ("text_encoder",)
    composes: ClassVar[tuple[str, ...]] = ("reference",)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:  # noqa: ARG002
        """See `CosineModel.compose_vector`."""
        return reference


class TirgTextOnly(CosineModel):
    """The text's embedding, with TIRG's encoders and no others."""

    system: ClassVar[str] = "tirg-text-only"
    composes: ClassVar[tuple[str, ...]] = ("text",)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:  # noqa: ARG002
        """See `CosineModel.compose_vector`."""
        return text


def _map_branch(channels: int, dim: int) -> nn.Sequential:
    # The authors' code has no ReLU between this batch norm and the first convolution.
    both = channels + dim
    return nn.Sequential(
        nn.BatchNorm2d(both),
        nn.Conv2d(both, both, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(both, channels, 3, padding=1),
    )
