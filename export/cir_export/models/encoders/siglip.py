"""SigLIP's two towers (Zhai et al., ICCV 2023), which are SigLIP 2's, too (Tschannen et al., 2025).

An image is a ViT without a class token, pooled by one learnt query that attends to all patches. A text is
always filled up to the context, is read without a mask, and is the state of its last position, through one
layer: the padding is a part of it. Parameter names are those of CLIP here, so that the blocks are shared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cir_export.models.base import InParts
from cir_export.models.encoders.image import PixelNormalization
from cir_export.models.encoders.pair import ImageTower, Pair
from cir_export.models.encoders.transformer import ACTIVATIONS, Transformer, attended, brought, perceptron
from cir_infer.errors import UsageError, shown

__all__ = ["Siglip", "SiglipSettings"]


@dataclass(frozen=True)
class SiglipSettings:
    """Sizes of both towers.

    Attributes:
        image_size: height and width of the input in pixels.
        patch_size: side of a patch.
        vision_layers: blocks of the image tower.
        vision_width: of the image tower, and D.
        vision_heads: of the image tower.
        vision_mlp: width inside its perceptrons.
        context_length: tokens of every text.
        vocabulary_size: tokens.
        text_width: of the text tower.
        text_layers: of the text tower.
        text_heads: of the text tower.
        text_mlp: width inside its perceptrons.
        activation: one of `ACTIVATIONS`.
        norm_eps: of the norms.
        mean: of the channels, in 0..1.
        std: their standard deviation, in 0..1.
    """

    image_size: int
    patch_size: int
    vision_layers: int
    vision_width: int
    vision_heads: int
    vision_mlp: int
    context_length: int
    vocabulary_size: int
    text_width: int
    text_layers: int
    text_heads: int
    text_mlp: int
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


class _PoolingHead(nn.Module):
    """One learnt query attends to all states; a perceptron beside a shortcut follows."""

    def __init__(self, s: SiglipSettings) -> None:
        super().__init__()
        width = s.vision_width
        self.heads = s.vision_heads
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, s.norm_eps)
        self.mlp = perceptron(width, s.vision_mlp, s.activation)

    def forward(self, x: Tensor) -> Tensor:
        pooled, _ = self._pooled(x)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]  # type: ignore[no-any-return]

    def _pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the query found (n, 1, W), and its attention (n, heads, 1, T)."""
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        linear = nn.functional.linear
        query = linear(self.probe, wq, bq).expand(x.shape[0], -1, -1)
        found, weights = attended(query, linear(x, wk, bk), linear(x, wv, bv), self.heads)
        return self.out_proj(found), weights

    def in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The embedding (n, W), and what the query took from each state, (n, T, W)."""
        pooled, weights = self._pooled(x)
        parts = brought(weights, x @ self.in_proj_weight.chunk(3)[2].T) @ self.out_proj.weight.T
        return (pooled + self.mlp(self.norm(pooled)))[:, 0], parts


class _Vision(ImageTower):
    def __init__(self, s: SiglipSettings) -> None:
        super().__init__()
        width, patches = s.vision_width, (s.image_size // s.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, s.patch_size, s.patch_size)
        self.positional_embedding = nn.Parameter(torch.randn(patches, width) * width**-0.5)
        self.transformer = Transformer(
            width, s.vision_layers, s.vision_heads, s.activation, s.vision_mlp, s.norm_eps
        )
        self.ln_post = nn.LayerNorm(width, s.norm_eps)
        self.head = _PoolingHead(s)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self._states(x))  # type: ignore[no-any-return]

    def _states(self, x: Tensor) -> Tensor:
        """Of the patches, (n, T, W)."""
        x = self.conv1(x).flatten(2).transpose(1, 2) + self.positional_embedding
        return self.ln_post(self.transformer(x))  # type: ignore[no-any-return]

    def in_parts(self, x: Tensor) -> InParts:
        """The embedding as the sum of what the pooling query took from each patch, and its perceptron."""
        rows, parts = self.head.in_parts(self._states(x))
        side = round(parts.shape[1] ** 0.5)
        return InParts(rows, parts.view(-1, side, side, rows.shape[1]), rows - parts.sum(1))


class Siglip(Pair):
    """Both towers, without normalisation of the embeddings."""

    family = "siglip"

    def __init__(self, settings: SiglipSettings) -> None:
        super().__init__(settings.vision_width, settings.image_size)
        _check(settings)
        self.settings = settings
        self.normalize = PixelNormalization(settings.mean, settings.std)
        self.visual = _Vision(settings)
        width = settings.text_width
        self.token_embedding = nn.Embedding(settings.vocabulary_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(settings.context_length, width) * 0.01)
        self.transformer = Transformer(
            width,
            settings.text_layers,
            settings.text_heads,
            settings.activation,
            settings.text_mlp,
            settings.norm_eps,
        )
        self.ln_final = nn.LayerNorm(width, settings.norm_eps)
        self.text_head = nn.Linear(width, settings.vision_width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # noqa: ARG002 - padding is text here
        """Tokens (n, T), filled up to the context, to float (n, D)."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.positional_embedding[steps]
        return self.text_head(self.ln_final(self.transformer(x))[:, -1])  # type: ignore[no-any-return]


def _check(s: SiglipSettings) -> None:
    sizes = (
        s.image_size, s.patch_size, s.vision_layers, s.vision_width, s.vision_heads, s.vision_mlp,
        s.context_length, s.vocabulary_size, s.text_width, s.text_layers, s.text_heads, s.text_mlp,
    )  # fmt: skip
    if min(sizes) < 1:
        raise UsageError("siglip: a size is 0; expected at least 1")
    if s.activation not in ACTIVATIONS:
        raise UsageError(
            f"siglip.activation: {shown(s.activation)} is not known; expected one of {', '.join(ACTIVATIONS)}"
        )
    if s.vision_width % s.vision_heads or s.text_width % s.text_heads:
        raise UsageError("siglip: a width is not a multiple of its heads")
    if s.image_size < s.patch_size:
        raise UsageError(f"siglip.image_size: {s.image_size} is smaller than a patch of {s.patch_size}")
