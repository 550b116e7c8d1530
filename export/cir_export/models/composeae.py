"""ComposeAE (Anwaar, Labintcev and Kleinsteuber, "Compositional Learning of Image-Text Query", WACV 2021).

The text rotates the image in a complex space, eq. 2 to 5; o is elementwise:

    delta = gamma(m)      phi = exp(i delta) o eta(r)
    q = a rho(phi) + b rho_conv(phi, r, m)

gamma and eta are perceptrons, rho one over [Re phi; Im phi], rho_conv a convolution over Re phi, Im phi, r
and m as four channels, then the largest of each of 16 stretches and a linear map. a and b are learned.

Beside the batch classification it has three losses, as in the paper: the target rotated back by the conjugate
must find the reference (eq. 9), and two decoders must find r and m in q (eq. 10 and 11, squared distances).
Their weights are settings; the paper tunes them a data set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cir_export.models.base import unit
from cir_export.models.cosine import CosineModel, EncoderSettings
from cir_infer.errors import UsageError

__all__ = ["ComposeAe", "ComposeAeSettings"]

_CHANNELS, _STRETCHES = 64, 16


@dataclass(frozen=True)
class ComposeAeSettings(EncoderSettings):
    """Configuration of ComposeAE.

    Attributes:
        symmetry: weight of the rotational symmetry loss; 0 leaves it out.
        reconstruction: weight of both reconstruction losses; 0 leaves them out.
    """

    symmetry: float = 1.0
    reconstruction: float = 0.1


class ComposeAe(CosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "composeae"
    settings_type: ClassVar[type[EncoderSettings]] = ComposeAeSettings

    def __init__(self, settings: ComposeAeSettings) -> None:
        super().__init__(settings)
        if settings.symmetry < 0 or settings.reconstruction < 0:
            raise UsageError("model.symmetry and model.reconstruction: expected weights of at least 0")
        dim = settings.embedding_dim
        self.settings = settings
        self.rotate = _perceptron(dim, dim)
        self.raise_image = _perceptron(dim, dim)
        self.stretch = -(-dim // _STRETCHES)
        self.map = nn.Sequential(
            nn.BatchNorm1d(2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )
        self.conv = nn.Conv1d(4, _CHANNELS, 3, padding=1)
        self.conv_map = nn.Linear(_CHANNELS * (dim // self.stretch), dim)
        self.branch_weights = nn.Parameter(torch.tensor([1.0, 1.0]))
        if settings.reconstruction:
            self.image_decoder = _perceptron(dim, dim)
            self.text_decoder = _perceptron(dim, dim)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        return self._rotated(reference, text, 1.0)

    def _rotated(self, image: Tensor, text: Tensor, direction: float) -> Tensor:
        angle, length = self.rotate(text), self.raise_image(image)
        real, imaginary = length * torch.cos(angle), direction * length * torch.sin(angle)
        signals = torch.stack([real, imaginary, image.to(real.dtype), text.to(real.dtype)], 1)
        largest = functional.max_pool1d(torch.relu(self.conv(signals)), self.stretch)
        mapped = self.map(torch.cat([real, imaginary], 1))
        query: Tensor = self.branch_weights[0] * mapped + self.branch_weights[1] * self.conv_map(
            largest.flatten(1)
        )
        return query

    def further_loss(self, reference: Tensor, text: Tensor, targets: Tensor) -> Tensor | None:
        """See `RetrievalModel.further_loss`: symmetry and reconstruction."""
        loss = None
        if self.settings.symmetry:
            back = unit(self._rotated(targets, text, -1.0).float())
            references = unit(reference.float())
            same = (reference[:, None] == reference[None]).all(2)
            same.fill_diagonal_(False)  # another query from the same reference is no negative
            scores = (back @ references.T * self.logit_scale.exp()).masked_fill(same, -torch.inf)
            right = torch.arange(len(scores), device=scores.device)
            loss = self.settings.symmetry * functional.cross_entropy(scores, right)
        if self.settings.reconstruction:
            query = self._rotated(reference, text, 1.0)
            apart = functional.mse_loss(self.image_decoder(query).float(), reference.float())
            apart = apart + functional.mse_loss(self.text_decoder(query).float(), text.float())
            more = self.settings.reconstruction * apart
            loss = more if loss is None else loss + more
        return loss


def _perceptron(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs)
    )
