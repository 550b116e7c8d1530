"""CLIP4Cir's Combiner over any pair of towers: over BLIP's it is Bi-BLIP4CIR.

Baldrati et al., CVPR workshops 2022, for the network (see `clip4cir`); Liu et al., "Bi-directional training
for composed image retrieval via text prompt learning", WACV 2024, for BLIP, whose prompt is in the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cir_export.models.clip4cir import Combiner
from cir_export.models.configuration import parse
from cir_export.models.encoders.pair import Pair
from cir_export.models.encoders.pairs import build_pair
from cir_export.models.sum import Sum

__all__ = ["PairCombiner"]


@dataclass(frozen=True)
class _Settings:
    """Configuration.

    Attributes:
        system: its name.
        pair: the towers, see `build_pair`.
        projection_dim: of P_m and P_r; 0 stands for 4 times the embedding's dimension.
        hidden_dim: of W_1 and W_c; 0 stands for 8 times the embedding's dimension.
    """

    system: str
    pair: dict  # type: ignore[type-arg]
    projection_dim: int = 0
    hidden_dim: int = 0


class PairCombiner(Sum):
    """The Combiner over raw embeddings; the towers stay as they are in training."""

    system: ClassVar[str] = "combiner"
    trains_head: ClassVar[bool] = True
    encoders_in_trunks: ClassVar[bool] = True

    def __init__(self, pair: Pair, projection_dim: int = 0, hidden_dim: int = 0) -> None:
        super().__init__(pair, unit_embeddings=False)
        dim = pair.embed_dim
        self.combiner = Combiner(dim, projection_dim or 4 * dim, hidden_dim or 8 * dim)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> PairCombiner:
        """See `RetrievalModel.from_config`; keys: `pair`, `projection_dim`, `hidden_dim`."""
        settings = parse(_Settings, config, "model")
        return cls(build_pair(settings.pair), settings.projection_dim, settings.hidden_dim)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `Sum.compose_vector`."""
        query: Tensor = self.combiner(reference, text)
        return query

    def trunks(self) -> list[nn.Module]:
        """Both towers: the Combiner alone is trained."""
        return [self.pair]
