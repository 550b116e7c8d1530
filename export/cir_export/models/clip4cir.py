"""CLIP4Cir: the sum of CLIP's features (stage 1) and the Combiner (stage 2).

Baldrati et al., "Conditioned and composed image retrieval combining and partially fine-tuning CLIP-based
features", CVPR workshops 2022.

Stage 1 fine-tunes CLIP with the sum as the query, stage 2 trains the Combiner on CLIP's raw features; for a
reference image r and a text m, s the sigmoid:

    sum:       q = l2(r + m)
    Combiner:  c = [ReLU(P_m m); ReLU(P_r r)]        lambda = s(W_2 ReLU(W_1 c))
               q = l2( W_o ReLU(W_c c) + lambda m + (1 - lambda) r )

The score is the cosine of q and the target's feature. Both read features that are not normalised, so gallery
rows are stored raw, and a row can serve as the reference of a next query; see `cir_export.models.cosine`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import InParts, RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.clip import Clip, ClipSettings

__all__ = ["Clip4CirCombiner", "Clip4CirSum", "CombinerSettings", "SumSettings"]


@dataclass(frozen=True)
class SumSettings:
    """Configuration of stage 1.

    Attributes:
        system: its name.
        clip: see `ClipSettings`.
    """

    system: str
    clip: dict  # type: ignore[type-arg]


@dataclass(frozen=True)
class CombinerSettings(SumSettings):
    """Configuration of stage 2.

    Attributes:
        projection_dim: of P_m and P_r; 0 stands for 4 times the embedding's dimension.
        hidden_dim: of W_1 and W_c; 0 stands for 8 times the embedding's dimension.
    """

    projection_dim: int = 0
    hidden_dim: int = 0


class Clip4CirSum(RetrievalModel):
    """Stage 1: the sum of the two features."""

    system: ClassVar[str] = "clip4cir-sum"
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    weighted = True

    def __init__(self, clip: Clip) -> None:
        super().__init__(clip.settings.embed_dim)
        self.clip = clip

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Clip4CirSum:
        """See `RetrievalModel.from_config`; keys: those of `SumSettings`."""
        settings = parse(SumSettings, config, "model")
        return cls(Clip(parse(ClipSettings, settings.clip, "clip")))

    def encode_gallery(self, images: Tensor) -> Tensor:
        """CLIP's raw image features, (n, D)."""
        return self.clip.encode_image(images).float()

    def encode_gallery_in_parts(self, images: Tensor) -> InParts:
        """See `RetrievalModel.encode_gallery_in_parts`."""
        return self.clip.image_in_parts(images)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """CLIP's raw text features, (n, D)."""
        return self.clip.encode_text(tokens, lengths).float()

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """The query (n, D), of any length."""
        return reference + text

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        query = unit(self.compose_vector(reference, text).float())[:, None]
        return Terms(query, torch.ones_like(query))

    def trunks(self) -> list[nn.Module]:
        """The image tower: stage 1 fine-tunes the text tower with it frozen."""
        return [self.clip.visual]


class Combiner(nn.Module):
    """The network of stage 2."""

    def __init__(self, dim: int, projection: int, hidden: int) -> None:
        super().__init__()
        self.text = nn.Linear(dim, projection)
        self.image = nn.Linear(dim, projection)
        self.hidden = nn.Linear(2 * projection, hidden)
        self.out = nn.Linear(hidden, dim)
        self.scalar_hidden = nn.Linear(2 * projection, hidden)
        self.scalar_out = nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, reference: Tensor, text: Tensor) -> Tensor:
        """Two (n, D) to the query (n, D), not normalised."""
        projected = [torch.relu(self.text(text)), torch.relu(self.image(reference))]
        both = torch.cat([self.dropout(x) for x in projected], 1)
        scalar = torch.sigmoid(self.scalar_out(self.dropout(torch.relu(self.scalar_hidden(both)))))
        mixed = self.out(self.dropout(torch.relu(self.hidden(both))))
        return mixed + scalar * text + (1 - scalar) * reference  # type: ignore[no-any-return]


class Clip4CirCombiner(Clip4CirSum):
    """Stage 2: the Combiner."""

    system: ClassVar[str] = "clip4cir-combiner"
    encoders_in_trunks: ClassVar[bool] = True

    def __init__(self, clip: Clip, projection_dim: int, hidden_dim: int) -> None:
        super().__init__(clip)
        dim = clip.settings.embed_dim
        self.combiner = Combiner(dim, projection_dim or 4 * dim, hidden_dim or 8 * dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Clip4CirCombiner:
        """See `RetrievalModel.from_config`; keys: those of `CombinerSettings`."""
        settings = parse(CombinerSettings, config, "model")
        clip = Clip(parse(ClipSettings, settings.clip, "clip"))
        return cls(clip, settings.projection_dim, settings.hidden_dim)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `Clip4CirSum.compose_vector`."""
        query: Tensor = self.combiner(reference, text)
        return query

    def trunks(self) -> list[nn.Module]:
        """All of CLIP: stage 2 trains the Combiner alone."""
        return [self.clip]
