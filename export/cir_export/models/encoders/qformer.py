"""BLIP-2's querying transformer (Li et al., ICML 2023): a BERT whose learnt queries look at an image.

Queries and words attend to one another in every layer, queries to the image's tokens in every second one,
and each of the two kinds has a feed-forward of its own. Norms stand behind the shortcuts, as in BERT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cir_export.models.encoders.transformer import attend

__all__ = ["QFormer", "hidden"]

_HIDDEN = -1e9
"""Added to the score of what must not be seen: the softmax is 0 there, and no kernel meets infinities."""


def hidden(seen: Tensor) -> Tensor:
    """What is added to scores, (n, 1, 1, T), by which positions can be seen, 1 or 0 (n, T)."""
    return ((1.0 - seen) * _HIDDEN)[:, None, None]


class _Attention(nn.Module):
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
        found = attend(self.query(x), self.key(others), self.value(others), self.heads, mask)
        return self.norm(self.dense(found) + x)  # type: ignore[no-any-return]


class _FeedForward(nn.Module):
    """Two layers, with their shortcut and norm."""

    def __init__(self, width: int, inside: int, eps: float) -> None:
        super().__init__()
        self.inner = nn.Linear(width, inside)
        self.outer = nn.Linear(inside, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.outer(nn.functional.gelu(self.inner(x))) + x)  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inside: int, image: int, eps: float) -> None:
        super().__init__()
        self.attention = _Attention(width, heads, width, eps)
        self.cross = _Attention(width, heads, image, eps) if image else None
        self.of_text = _FeedForward(width, inside, eps)
        self.of_queries = _FeedForward(width, inside, eps)


class QFormer(nn.Module):
    """The layers, behind the norm of what goes in.

    Args:
        width: of the states.
        layers: blocks.
        heads: of the attention.
        inside: width of the feed-forwards.
        image: width of an image's tokens.
        every: in every so many layers, from the first on, queries look at the image.
        eps: of the norms.
    """

    def __init__(
        self, width: int, layers: int, heads: int, inside: int, image: int, every: int, eps: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(
            _Layer(width, heads, inside, 0 if number % every else image, eps) for number in range(layers)
        )

    def over_image(
        self, queries: Tensor, image: Tensor, words: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """States of the queries, which look at an image and at words.

        Args:
            queries: (n, Q, W).
            image: its tokens, (n, T, V).
            words: (n, L, W), with `seen`; None for none.
            seen: 1 where a word is one and 0 where the text has ended, (n, L).

        Returns:
            (n, Q, W).
        """
        count, mask = queries.shape[1], None
        x = queries if words is None else torch.cat([queries, words], 1)
        if seen is not None:
            mask = hidden(torch.cat([torch.ones_like(queries[:, :, 0]), seen], 1))
        x = self.norm(x)
        for number, layer in enumerate(self.layers):
            x = layer.attention(x, x, mask)  # type: ignore[operator]
            first = x[:, :count]
            if layer.cross is not None:
                first = layer.cross(first, image)  # type: ignore[operator]
            first = layer.of_queries(first)  # type: ignore[operator]
            # Behind the last layer nobody reads the words' states.
            last = words is None or number == len(self.layers) - 1
            x = first if last else torch.cat([first, layer.of_text(x[:, count:])], 1)  # type: ignore[operator]
        return x

    def of_text(self, x: Tensor, seen: Tensor) -> Tensor:
        """States (n, L, W) of what is read as a text, without an image; see `over_image`."""
        x, mask = self.norm(x), hidden(seen)
        for layer in self.layers:
            x = layer.of_text(layer.attention(x, x, mask))  # type: ignore[operator]
        return x
