"""BLIP's two encoders (Li et al., ICML 2022), each alone: a ViT's class token, and BERT's first state.

What BLIP's text encoder has for looking at images plays no part here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cir_export.models.base import InParts
from cir_export.models.encoders.bert import Bert
from cir_export.models.encoders.clip import CLIP_MEAN, CLIP_STD
from cir_export.models.encoders.image import PixelNormalization
from cir_export.models.encoders.pair import ImageTower, Pair
from cir_export.models.encoders.transformer import Transformer
from cir_export.models.encoders.vit import class_token_in_parts
from cir_infer.errors import UsageError

__all__ = ["Blip", "BlipSettings"]


@dataclass(frozen=True)
class BlipSettings:
    """Sizes of both encoders.

    Attributes:
        embed_dim: of both embeddings.
        image_size: height and width of the input in pixels.
        patch_size: side of a patch.
        vision_layers: blocks of the ViT.
        vision_width: of the ViT.
        vision_heads: of the ViT.
        vision_mlp: width inside its perceptrons.
        vocabulary_size: tokens.
        positions: places that a word can have.
        text_width: of BERT.
        text_layers: of BERT.
        text_heads: of BERT.
        text_mlp: width inside its feed-forwards.
        vision_eps: of the ViT's norms.
        text_eps: of BERT's norms.
        mean: of the channels, in 0..1.
        std: their standard deviation, in 0..1.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision_layers: int
    vision_width: int
    vision_heads: int
    vision_mlp: int
    vocabulary_size: int
    positions: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    vision_eps: float = 1e-6
    text_eps: float = 1e-12
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


class _Vision(ImageTower):
    def __init__(self, s: BlipSettings) -> None:
        super().__init__()
        width, patches = s.vision_width, (s.image_size // s.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, s.patch_size, s.patch_size)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.transformer = Transformer(
            width, s.vision_layers, s.vision_heads, "gelu", s.vision_mlp, s.vision_eps
        )
        self.ln_post = nn.LayerNorm(width, s.vision_eps)
        self.proj = nn.Linear(width, s.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.ln_post(self.transformer(self._tokens(x))[:, 0]))  # type: ignore[no-any-return]

    def _tokens(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding

    def in_parts(self, x: Tensor) -> InParts:
        """See `class_token_in_parts`."""
        return class_token_in_parts(
            self._tokens(x), self.transformer, self.ln_post, self.proj, self.proj.weight.T
        )


class Blip(Pair):
    """Both encoders, without normalisation of the embeddings."""

    family = "blip"

    def __init__(self, settings: BlipSettings) -> None:
        super().__init__(settings.embed_dim, settings.image_size)
        s = self.settings = settings
        sizes = (s.image_size, s.patch_size, s.vision_heads, s.text_heads, s.positions, s.vocabulary_size)
        if min(sizes) < 1 or s.vision_width % s.vision_heads or s.text_width % s.text_heads:
            raise UsageError("blip: a size is 0, or a width is not a multiple of its heads")
        self.normalize = PixelNormalization(s.mean, s.std)
        self.visual = _Vision(s)
        self.bert = Bert(
            s.vocabulary_size, s.positions, s.text_width, s.text_layers, s.text_heads, s.text_mlp, s.text_eps
        )
        self.text_proj = nn.Linear(s.text_width, s.embed_dim)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (n, T) with lengths (n,) to float (n, D)."""
        return self.text_proj(self.bert(tokens, lengths))  # type: ignore[no-any-return]
