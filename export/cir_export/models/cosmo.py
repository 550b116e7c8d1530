"""CoSMo (Lee, Kim and Han, "Content-Style Modulation for Image Retrieval with Text Feedback", CVPR 2021).

On the trunk's last map x, with t the text at every position, n(x) the map normalised a channel, and [x; t]
the concatenation:

    content   q, k, m, v = four streams over [n(x); t]              two 1 x 1 convolutions each
              y_i = sum_j (softmax_j((q_i - mean q) . (k_j - mean k)) + softmax_j(mean q . m_j)) v_j
              c = x + W [y; t]
    style     [a; b] = MLP(t)
              o = (std(x) + a) * n(c) + mean(x) + b

The first sum is the disentangled non-local block (Yin et al., ECCV 2020): how positions relate, and how much
each matters by itself, both told by the text. Mean and deviation over positions are the style, which the text
shifts. The image encoder's pooling and linear layer then make the query; a row cannot serve as the reference.

Sizes that the paper leaves open are chosen to meet Table 7 of ARTEMIS (2.110 giga multiply-accumulates
and 47.73 M parameters beyond the encoders; ours are 2.121 and 47.73): every stream keeps the map's 2,048
channels, W reads the text as well, and the style's perceptron has 1,024 hidden values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import EncoderSettings, MapCosineModel
from cir_infer.errors import UsageError

__all__ = ["Cosmo", "CosmoSettings"]

_FLOOR = 1e-5


@dataclass(frozen=True)
class CosmoSettings(EncoderSettings):
    """Configuration of CoSMo.

    Attributes:
        style_hidden: hidden values of the style's perceptron.
    """

    style_hidden: int = 1024


class _Stream(nn.Module):
    """Two 1 x 1 convolutions over a map with the text at every position."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(channels + text, channels, 1)
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, both: Tensor) -> Tensor:
        """(n, C + D, h, w) to (n, C, h * w)."""
        return self.conv(torch.relu(self.fuse(both))).flatten(2)  # type: ignore[no-any-return]


class Cosmo(MapCosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "cosmo"
    settings_type: ClassVar[type[EncoderSettings]] = CosmoSettings

    def __init__(self, settings: CosmoSettings) -> None:
        super().__init__(settings)
        if settings.style_hidden < 1:
            raise UsageError("model.style_hidden: 0; expected at least 1")
        channels, dim = self.image_encoder.trunk.channels[-1], settings.embedding_dim
        self.queries = _Stream(channels, dim)
        self.keys = _Stream(channels, dim)
        self.unary = _Stream(channels, dim)
        self.values = _Stream(channels, dim)
        self.out = nn.Conv2d(channels + dim, channels, 1)
        self.style = nn.Sequential(
            nn.Linear(dim, settings.style_hidden), nn.ReLU(), nn.Linear(settings.style_hidden, 2 * channels)
        )

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        words = text[:, :, None, None].expand(-1, -1, reference.shape[2], reference.shape[3])
        normal, mean, deviation = _style(reference)
        both = torch.cat([normal, words], 1)
        queries, keys, unary, values = (
            part(both) for part in (self.queries, self.keys, self.unary, self.values)
        )
        middle = queries.mean(2, keepdim=True)
        scale = queries.shape[1] ** -0.5
        pairs = (queries - middle).transpose(1, 2) @ (keys - keys.mean(2, keepdim=True))
        pairs = torch.softmax(pairs.float() * scale, -1)
        alone = torch.softmax((middle.transpose(1, 2) @ unary).float() * scale, -1)
        seen = (values @ (pairs + alone).to(values.dtype).transpose(1, 2)).view_as(reference)
        content = reference + self.out(torch.cat([seen, words], 1))
        more, shift = self.style(text)[:, :, None, None].chunk(2, 1)
        return self.image_encoder.embed((deviation + more) * _style(content)[0] + mean + shift)


def _style(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A map normalised a channel, and what was taken from it: mean and deviation, (n, C, 1, 1)."""
    flat = x.float().flatten(2)
    mean = flat.mean(2)[:, :, None, None]
    deviation = torch.sqrt(((x.float() - mean) ** 2).flatten(2).mean(2) + _FLOOR)[:, :, None, None]
    return ((x.float() - mean) / deviation).to(x.dtype), mean.to(x.dtype), deviation.to(x.dtype)
