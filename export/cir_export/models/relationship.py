"""Relationship: a relation network (Santoro et al., NeurIPS 2017; a baseline of Vo et al., CVPR 2019).

The reference's last map is cut into cells o_i, each with its place on the grid; every ordered pair of
cells meets the text in a perceptron g, the mean over pairs goes through a perceptron f:

    q = f( mean_ij g([o_i; o_j; m]) )

The first layer of g is a sum of three linear maps, so it runs once per cell and once per text, not once
per pair. The reference is the cells, so a gallery row cannot serve as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.configuration import parse
from cir_export.models.cosine import EncoderSettings, MapCosineModel
from cir_export.models.encoders.image import PixelSettings, map_sides
from cir_export.models.encoders.pooling import GridPool
from cir_infer.errors import UsageError

__all__ = ["Relationship", "RelationshipSettings"]


@dataclass(frozen=True)
class RelationshipSettings(EncoderSettings):
    """Configuration of Relationship.

    Attributes:
        cells: cells a side; the map's side must be a multiple of it.
        hidden: width of the perceptrons.
    """

    cells: int = 7
    hidden: int = 256


class Relationship(MapCosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "relationship"
    settings_type: ClassVar[type[EncoderSettings]] = RelationshipSettings
    places: Tensor

    def __init__(self, settings: RelationshipSettings) -> None:
        super().__init__(settings)
        if min(settings.cells, settings.hidden) < 1:
            raise UsageError("model: cells or hidden is 0; expected at least 1")
        trunk, hidden = self.image_encoder.trunk, settings.hidden
        side = map_sides(trunk, parse(PixelSettings, settings.image, "image").size)[-1]
        if side % settings.cells:
            raise UsageError(f"model.cells: {settings.cells} do not divide a map of {side} x {side}")
        channels = trunk.channels[-1]
        self.pool = GridPool(settings.cells)
        places = torch.linspace(-1.0, 1.0, settings.cells)
        grid = torch.stack(torch.meshgrid(places, places, indexing="ij"), -1).view(1, -1, 2)
        self.register_buffer("places", grid, persistent=False)
        self.first = nn.Linear(channels + 2, hidden, bias=False)
        self.second = nn.Linear(channels + 2, hidden, bias=False)
        self.text = nn.Linear(settings.embedding_dim, hidden)
        self.pair = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.out = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, settings.embedding_dim)
        )

    def encode_reference(self, images: Tensor) -> Tensor:
        """The cells, (n, C, cells * cells)."""
        last: Tensor = self.image_encoder.maps(images)[-1]
        return self.pool(last).view(last.shape[0], last.shape[1], -1)  # type: ignore[no-any-return]

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        cells = torch.cat([reference.transpose(1, 2), self.places.expand(reference.shape[0], -1, -1)], 2)
        pairs = self.first(cells)[:, :, None] + self.second(cells)[:, None] + self.text(text)[:, None, None]
        query: Tensor = self.out(self.pair(pairs).mean((1, 2)))
        return query
