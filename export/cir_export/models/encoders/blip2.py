"""BLIP-2's first stage (Li et al., ICML 2023): a ViT, the Q-Former over its tokens, and two projections.

It is the same network in Hugging Face's `Blip2ForImageTextRetrieval`, in LAVIS, and in what was trained from
it (CoVR-2, SPRC, SPN); the names of parameters here are our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cir_export.models.encoders.clip import CLIP_MEAN, CLIP_STD
from cir_export.models.encoders.image import PixelNormalization
from cir_export.models.encoders.qformer import QFormer
from cir_export.models.encoders.transformer import ACTIVATIONS, Transformer
from cir_infer.errors import UsageError, shown

__all__ = ["Blip2", "Blip2Settings"]


@dataclass(frozen=True)
class Blip2Settings:
    """Sizes of BLIP-2.

    Attributes:
        embed_dim: D, of both projections.
        image_size: height and width of the input in pixels.
        patch_size: side of a patch.
        vision_width: of the ViT.
        vision_layers: blocks of the ViT.
        vision_heads: of the ViT.
        vision_mlp: width inside its perceptrons.
        queries: M, learnt queries of the Q-Former.
        width: of the Q-Former.
        layers: of the Q-Former.
        heads: of the Q-Former.
        mlp: width inside its feed-forwards.
        vocabulary_size: tokens.
        context_length: longest text in tokens.
        positions: places that a word can have.
        cross_every: in every so many layers queries look at the image.
        activation: of the ViT, one of `ACTIVATIONS`; CLIP's ViT has "quick_gelu".
        starts_with_norm: whether a norm stands before the ViT's blocks, and patches have no bias: CLIP's ViT.
        vision_eps: of the norms in the ViT's blocks.
        last_eps: of the norm behind them.
        norm_eps: of the norms in the Q-Former.
        mean: of the channels, in 0..1.
        std: their standard deviation, in 0..1.
    """

    embed_dim: int
    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_mlp: int
    queries: int
    width: int
    layers: int
    heads: int
    mlp: int
    vocabulary_size: int
    context_length: int
    positions: int
    cross_every: int = 2
    activation: str = "gelu"
    starts_with_norm: bool = False
    vision_eps: float = 1e-6
    last_eps: float = 1e-5
    norm_eps: float = 1e-12
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


class _Tokens(nn.Module):
    """A ViT that keeps all its states: normalised pixels (n, 3, H, W) to (n, 1 + patches, V)."""

    def __init__(self, s: Blip2Settings) -> None:
        super().__init__()
        width, patches = s.vision_width, (s.image_size // s.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, s.patch_size, s.patch_size, bias=not s.starts_with_norm)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(patches + 1, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, s.vision_eps) if s.starts_with_norm else None
        self.transformer = Transformer(
            width, s.vision_layers, s.vision_heads, s.activation, s.vision_mlp, s.vision_eps
        )
        self.ln_post = nn.LayerNorm(width, s.last_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(x if self.ln_pre is None else self.ln_pre(x)))  # type: ignore[no-any-return]


class Blip2(nn.Module):
    """The network, and what is asked of it."""

    def __init__(self, settings: Blip2Settings) -> None:
        super().__init__()
        _check(settings)
        s = self.settings = settings
        self.normalize = PixelNormalization(s.mean, s.std)
        self.visual = _Tokens(s)
        self.query_tokens = nn.Parameter(torch.randn(1, s.queries, s.width) * 0.02)
        self.word_embedding = nn.Embedding(s.vocabulary_size, s.width)
        self.position_embedding = nn.Parameter(torch.randn(s.positions, s.width) * 0.02)
        self.qformer = QFormer(s.width, s.layers, s.heads, s.mlp, s.vision_width, s.cross_every, s.norm_eps)
        self.vision_proj = nn.Linear(s.width, s.embed_dim)
        self.text_proj = nn.Linear(s.width, s.embed_dim)

    def image_tokens(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) to the ViT's tokens, float (n, 1 + patches, V)."""
        return self.visual(self.normalize(images))  # type: ignore[no-any-return]

    def image_vectors(self, images: Tensor) -> Tensor:
        """uint8 (n, H, W, 3) to what each query makes of the image alone, projected: float (n, M, D)."""
        tokens = self.image_tokens(images)
        return self.vision_proj(self.qformer.over_image(self._queries(tokens), tokens)).float()  # type: ignore[no-any-return]

    def words(self, tokens: Tensor) -> Tensor:
        """Vectors of words with their places, (n, T, W), of tokens int (n, T)."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        # Indexed, not sliced, so that an exported graph sets no bound to the length.
        return self.word_embedding(tokens) + self.position_embedding[steps]  # type: ignore[no-any-return]

    def text_embedding(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """The projected state of a text's first token, read without an image: float (n, D)."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        seen = (steps < lengths.to(steps.device).long()[:, None]).float()
        states = self.qformer.of_text(self.words(tokens), seen)
        return self.text_proj(states[:, 0]).float()  # type: ignore[no-any-return]

    def padded_words(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """`words`, filled up to the context, and in one more column whether there is one: (n, L, W + 1)."""
        steps = torch.arange(self.settings.context_length, device=tokens.device)
        words = self.word_embedding(tokens[:, steps.clamp(max=tokens.shape[1] - 1)])
        seen = (steps < lengths.to(steps.device).long()[:, None]).to(words.dtype)[..., None]
        places = self.position_embedding[: self.settings.context_length]
        return torch.cat([(words + places) * seen, seen], 2)

    def fused(self, image: Tensor, padded: Tensor) -> Tensor:
        """States of the queries (n, M, W), which look at an image's tokens and at a text's padded words."""
        return self.qformer.over_image(self._queries(image), image, padded[..., :-1], padded[..., -1])

    def _queries(self, like: Tensor) -> Tensor:
        return self.query_tokens.expand(like.shape[0], -1, -1)


def _check(s: Blip2Settings) -> None:
    sizes = (
        s.embed_dim, s.image_size, s.patch_size, s.vision_width, s.vision_layers, s.vision_heads,
        s.vision_mlp, s.queries, s.width, s.layers, s.heads, s.mlp, s.vocabulary_size, s.context_length,
        s.positions, s.cross_every,
    )  # fmt: skip
    if min(sizes) < 1:
        raise UsageError("blip2: a size is 0; expected at least 1")
    if s.activation not in ACTIVATIONS:
        raise UsageError(
            f"blip2.activation: {shown(s.activation)} is not known; expected one of {', '.join(ACTIVATIONS)}"
        )
    if s.vision_width % s.vision_heads or s.width % s.heads:
        raise UsageError("blip2: a width is not a multiple of its heads")
    if s.image_size < s.patch_size:
        raise UsageError(f"blip2.image_size: {s.image_size} is smaller than a patch of {s.patch_size}")
    if s.context_length > s.positions:
        raise UsageError(f"blip2.context_length: {s.context_length} words have {s.positions} places")
