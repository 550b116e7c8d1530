"""BERT's layers (Devlin et al., NAACL 2019), and a text's first state: what BLIP reads texts with.

Norms stand behind the shortcuts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cir_export.models.encoders.transformer import attend

__all__ = ["Attention", "Bert", "FeedForward", "hidden"]

_HIDDEN = -1e9
"""Added to the score of what must not be seen: the softmax is 0 there, and no kernel meets infinities."""


def hidden(seen: Tensor) -> Tensor:
    """What is added to scores, (n, 1, 1, T), by which positions can be seen, 1 or 0 (n, T)."""
    return ((1.0 - seen) * _HIDDEN)[:, None, None]


class Attention(nn.Module):
    """Attention over others, with its shortcut and norm."""

    def __init__(self, width: int, heads: int, of: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(of, width)
        self.value = nn.Linear(of, width)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, others: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (n, S, W) over others (n, T, V); `mask` is added to the scores."""
        found = attend(self.query(x), self.key(others), self.value(others), self.heads, mask)
        return self.norm(self.dense(found) + x)  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """Two layers, with their shortcut and norm."""

    def __init__(self, width: int, inside: int, eps: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inside)
        self.outer = nn.Linear(inside, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        """States (n, S, W) to the same."""
        return self.norm(self.outer(nn.functional.gelu(self.inner(x))) + x)  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inside: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width, eps)
        self.of_text = FeedForward(width, inside, eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.of_text(self.attention(x, x, mask))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Word vectors with their places, a norm, and the layers.

    Args:
        vocabulary: tokens.
        positions: places that a word can have.
        width: of the states.
        layers: blocks.
        heads: of the attention.
        inside: width of the feed-forwards.
        eps: of the norms.
    """

    def __init__(
        self, vocabulary: int, positions: int, width: int, layers: int, heads: int, inside: int, eps: float
    ) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(_Layer(width, heads, inside, eps) for _ in range(layers))

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens int (n, T) with lengths int (n,) to the state of each text's first token, (n, W)."""
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        mask = hidden((steps < lengths.to(steps.device).long()[:, None]).float())
        # Indexed, not sliced, so that an exported graph sets no bound to the length.
        x = self.norm(self.word_embedding(tokens) + self.position_embedding[steps])
        for layer in self.layers:
            x = layer(x, mask)
        return x[:, 0]  # type: ignore[no-any-return]
