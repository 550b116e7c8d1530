"""VAL (Chen, Gong and Bazzani, CVPR 2020).

"Image Search with Text Feedback by Visiolinguistic Attention Learning".
A composite transformer on each of the trunk's last three levels l. With x the level's map and t the text,
[x; t] their concatenation at every position, and * the product of a map with gates:

    x_vs = F_vs([x; t])                                    1 x 1 convolution
    x_sa = F_o(softmax(Q(x_vs)^T K(x_vs) / sqrt(d)) V(x_vs))      two heads, d channels each
    A    = sigmoid(F_c(mean over positions of x_vs)) * sigmoid(F_p(mean over channels of x_vs))
    x_o  = w_sa x_sa + w_ja A * x
    q^l  = l2(H^l mean(x_o))        t^l = l2(H^l mean(x))        score = mean over l of < q^l, t^l >

w_sa and w_ja are learned. A row holds the three levels side by side, so it cannot serve as the reference.

Sizes that the paper leaves open are chosen to meet Table 7 of ARTEMIS, which counts VAL with 27.83 M
parameters and 0.040 giga multiply-accumulates (ours: 28.07 and 0.0407): d is a quarter of the level's
channels, each level has its own linear map of the text to twice its length, and each level's map is first
averaged to `grids` cells a side, 2, 2 and 1. On the maps as they are (`grids = [0, 0, 0]`) the same
weights cost far more, so whatever was counted there did not run on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import PixelNormalization, PixelSettings, build_trunk, map_sides
from cir_export.models.encoders.pooling import averaged
from cir_export.models.encoders.text import build_text_encoder
from cir_infer.errors import UsageError

__all__ = ["Val", "ValSettings"]

_HEADS = 2


@dataclass(frozen=True)
class ValSettings:
    """Configuration of VAL.

    Attributes:
        system: "val".
        image: see `PixelSettings`; the last three stages are the levels, its pooling is not read.
        text: see `TextSettings`.
        embedding_dim: of the text and of each level; a row is three times as long.
        grids: cells a side to which each level's map is averaged, the finest first; 0 leaves a map as it is.
    """

    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = 512
    grids: tuple[int, ...] = (2, 2, 1)


class _Level(nn.Module):
    """One composite transformer."""

    def __init__(self, channels: int, side: int, dim: int) -> None:
        super().__init__()
        self.channels, self.side = channels, side
        width = max(_HEADS, channels // 2 // _HEADS * _HEADS)
        self.text = nn.Linear(dim, 2 * dim)
        self.fuse = nn.Conv2d(channels, channels, 1)
        self.fuse_text = nn.Linear(2 * dim, channels, bias=False)
        self.queries = nn.Conv2d(channels, width, 1)
        self.keys = nn.Conv2d(channels, width, 1)
        self.values = nn.Conv2d(channels, width, 1)
        self.attended = nn.Conv2d(width, channels, 1)
        self.channel_gate = nn.Linear(channels, channels)
        self.position_gate = nn.Conv2d(1, 1, 3, padding=1)
        self.weights = nn.Parameter(torch.ones(2))
        self.project = nn.Linear(channels, dim)

    def of_target(self, level: Tensor) -> Tensor:
        """A level's part of a row, (n, D), from (n, C, side, side)."""
        return unit(self.project(level.flatten(2).mean(2)).float())

    def of_query(self, level: Tensor, text: Tensor) -> Tensor:
        """A level's part of a query, (n, D)."""
        # F_vs of the concatenation, its text's half computed once for all positions.
        fused = self.fuse(level) + self.fuse_text(self.text(text))[:, :, None, None]
        joint = torch.sigmoid(self.channel_gate(fused.flatten(2).mean(2)))[:, :, None, None]
        joint = joint * torch.sigmoid(self.position_gate(fused.mean(1, keepdim=True)))
        queries, keys, values = (
            part(fused).view(-1, _HEADS, part.out_channels // _HEADS, self.side * self.side)
            for part in (self.queries, self.keys, self.values)
        )
        logits = (queries.transpose(2, 3) @ keys).float() * queries.shape[2] ** -0.5
        seen = values @ torch.softmax(logits, -1).to(values.dtype).transpose(2, 3)
        seen = self.attended(seen.reshape(-1, self.attended.in_channels, self.side, self.side))
        return self.of_target(self.weights[0] * seen + self.weights[1] * joint * level)


class Val(RetrievalModel):
    """See the module's docstring."""

    system: ClassVar[str] = "val"
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    reference_is_gallery_row = False

    def __init__(self, settings: ValSettings) -> None:
        image = parse(PixelSettings, settings.image, "image")
        if settings.embedding_dim < 1:
            raise UsageError("model.embedding_dim: 0; expected at least 1")
        super().__init__(len(settings.grids) * settings.embedding_dim)
        self.normalize = PixelNormalization(image.mean, image.std)
        self.trunk = build_trunk(image)
        self.text_encoder = build_text_encoder(settings.text, settings.embedding_dim)
        count = self.trunk_levels = len(settings.grids)
        if len(self.trunk.channels) < count:
            raise UsageError(
                f"image.channels: {len(self.trunk.channels)} stages; val reads the last {count} (model.grids)"
            )
        sides = map_sides(self.trunk, image.size)[-count:]
        for side, grid in zip(sides, settings.grids, strict=True):
            if grid and side % grid:
                raise UsageError(f"model.grids: {grid} cells do not divide a map of {side} x {side}")
        self.sides = [grid or side for side, grid in zip(sides, settings.grids, strict=True)]
        self.levels = nn.ModuleList(
            _Level(channels, side, settings.embedding_dim)
            for channels, side in zip(self.trunk.channels[-count:], self.sides, strict=True)
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Val:
        """See `RetrievalModel.from_config`; keys: those of `ValSettings`."""
        return cls(parse(ValSettings, config, "model"))

    def _maps(self, images: Tensor) -> list[Tensor]:
        maps = self.trunk.maps(self.normalize(images))[-len(self.sides) :]
        return [averaged(found, side) for found, side in zip(maps, self.sides, strict=True)]

    def encode_gallery(self, images: Tensor) -> Tensor:
        """The levels side by side, (n, 3 D), of unit length."""
        return self._joined(
            [level.of_target(found) for level, found in zip(self._levels(), self._maps(images), strict=True)]
        )

    def encode_reference(self, images: Tensor) -> Tensor:
        """Every level's averaged map, flattened and side by side."""
        return torch.cat([found.flatten(1) for found in self._maps(images)], 1)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See `RetrievalModel.encode_text`."""
        text: Tensor = self.text_encoder(tokens, lengths)
        return text

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        parts = torch.split(reference, [level.channels * level.side**2 for level in self._levels()], 1)
        query = self._joined(
            [
                level.of_query(part.view(-1, level.channels, level.side, level.side), text)
                for level, part in zip(self._levels(), parts, strict=True)
            ]
        )
        return Terms(query[:, None], None)

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.trunk]

    def _levels(self) -> list[_Level]:
        return list(self.levels)  # type: ignore[arg-type]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Unit vectors side by side as one: dot products are the mean of the levels' cosines."""
        joined: Tensor = torch.cat(list(parts), 1) * float(len(parts)) ** -0.5
        return joined
