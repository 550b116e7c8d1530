"""MagicLens over CLIP (Zhang et al., "MagicLens", ICML 2024): a picture and what is asked of it are tokens.

    x = [r, m]                              CLIP's raw embeddings of an image and a text
    x = x + A(n(x));  x = x + P(n(x))       four times; A: attention, P: Linear, ReLU, Linear, n: layer norm
    f(r, m) = l2(n(pooled(x)))              attention of one learnt query over both tokens

Logits of every attention are capped, 50 tanh(logit / 50). The query is f(r, m); a gallery row is the same
function of the image and the *empty* text, f(t, m_0), and the score is their product. So a row is no
reference, and refining a hit takes its image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.clip import Clip
from cir_export.models.encoders.pairs import build_clip
from cir_export.models.encoders.transformer import in_heads
from cir_infer.errors import UsageError

__all__ = ["MagicLens", "MagicLensSettings"]

_CAP = 50.0
_NORM_EPS = 1e-6


@dataclass(frozen=True)
class MagicLensSettings:
    """Configuration.

    Attributes:
        system: its name.
        pair: the towers of a CLIP, see `build_clip`.
        layers: over the two tokens.
        heads: of their attention, and of the pooling's.
        hidden: width inside their perceptrons.
        pooled: width inside the pooling.
    """

    system: str
    pair: dict  # type: ignore[type-arg]
    layers: int
    heads: int
    hidden: int
    pooled: int


class _Attention(nn.Module):
    """Attention of (n, S, D) over (n, T, D) within `inside` values, its logits capped.

    Args:
        dim: D.
        inside: of queries, keys and values together.
        heads: parts of those.
        scaled: each value within a head has a scale of its own, which is learnt; else 1 / sqrt of how many.
    """

    def __init__(self, dim: int, inside: int, heads: int, scaled: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, inside) for _ in range(3))
        self.out = nn.Linear(inside, dim)
        width = inside // heads
        scale = width**-0.5
        self.scale: Tensor | float = nn.Parameter(torch.full((width,), scale)) if scaled else scale

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (
            in_heads(layer(x), self.heads)
            for layer, x in ((self.query, queries), (self.key, tokens), (self.value, tokens))
        )
        logits = (q * self.scale) @ k.transpose(2, 3)
        weights = torch.softmax(_CAP * torch.tanh(logits / _CAP), -1)
        found: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return found


class _Layer(nn.Module):
    """A pre-norm layer over the two tokens."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(dim, _NORM_EPS), nn.LayerNorm(dim, _NORM_EPS)
        self.attention = _Attention(dim, dim, heads, scaled=False)
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        x = x + self.attention(normed, normed)
        found: Tensor = x + self.outer(torch.relu(self.inner(self.norm_2(x))))
        return found


class MagicLens(RetrievalModel):
    """Both sides are one network; the gallery's text is empty."""

    system: ClassVar[str] = "magiclens"
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    reference_is_gallery_row: ClassVar[bool] = False
    from_towers: ClassVar[bool] = True

    def __init__(self, clip: Clip, layers: int, heads: int, hidden: int, pooled: int) -> None:
        super().__init__(clip.embed_dim)
        dim = clip.embed_dim
        self.pair = clip
        self.layers = nn.ModuleList(_Layer(dim, heads, hidden) for _ in range(layers))
        self.pooling_query = nn.Parameter(torch.randn(1, dim) / math.sqrt(dim))
        self.pooling = _Attention(dim, pooled, heads, scaled=True)
        self.pooling_norm = nn.LayerNorm(dim, _NORM_EPS)
        self.empty_text: Tensor
        self.register_buffer("empty_text", torch.zeros(dim))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> MagicLens:
        """See `RetrievalModel.from_config`; keys: those of `MagicLensSettings`."""
        settings = parse(MagicLensSettings, config, "model")
        pair = build_clip(settings.pair, "MagicLens is over a CLIP")
        heads, widths = settings.heads, (pair.embed_dim, settings.pooled)
        if min(heads, settings.hidden, *widths) < 1 or any(width % heads for width in widths):
            raise UsageError(
                f"heads: {heads} do not divide embeddings of {pair.embed_dim} and a pooling of "
                f"{settings.pooled} values"
            )
        return cls(pair, settings.layers, heads, settings.hidden, settings.pooled)

    @torch.no_grad()
    def keep_empty_text(self, tokens: Tensor, lengths: Tensor) -> None:
        """Encode the empty text, which every gallery row is made with, once: int (1, T) and int (1,)."""
        self.empty_text = self.encode_text(tokens, lengths)[0]

    def encode_gallery(self, images: Tensor) -> Tensor:
        """The network on an image and the empty text, (n, D) of unit length."""
        image = self.encode_reference(images)
        return self._fused(image, self.empty_text.expand_as(image))

    def encode_reference(self, images: Tensor) -> Tensor:
        """CLIP's raw image embedding, (n, D)."""
        return self.pair.encode_image(images).float()

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """CLIP's raw text embedding, (n, D)."""
        # Its authors pad with token 0, which is "!" before another sign, and look at none within a text.
        return self.pair.encode_text(tokens, lengths, unseen=0).float()

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        return Terms(self._fused(reference, text)[:, None], None)

    def _fused(self, image: Tensor, text: Tensor) -> Tensor:
        x = torch.stack([image, text], 1)
        for layer in self.layers:
            x = layer(x)
        pooled = self.pooling(self.pooling_query.expand(x.shape[0], 1, -1), x)
        return unit(self.pooling_norm(pooled[:, 0]).float())

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.pair.visual]
