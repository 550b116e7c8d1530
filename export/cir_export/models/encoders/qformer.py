"""BLIP-2's querying transformer (Li et al., ICML 2023): a BERT whose learnt queries look at an image.

Queries and words attend to one another in every layer, queries to the image's tokens in every second one,
and each of the two kinds has a feed-forward of its own. Norms stand behind the shortcuts, as in BERT.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cir_export.models.encoders.bert import Attention, FeedForward, hidden

__all__ = ["QFormer"]


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, inside: int, image: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width, eps)
        self.cross = Attention(width, heads, image, eps) if image else None
        self.of_text = FeedForward(width, inside, eps)
        self.of_queries = FeedForward(width, inside, eps)


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
