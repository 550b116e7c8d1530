"""Bags of embeddings over texts of one padded length, without the loop that the exporter would write."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Bag", "with_plain_bags"]


class Bag(nn.Module):
    """Stands in for an `nn.EmbeddingBag` during export, where its input is (n, T): an embedding, reduced.

    Args:
        bag: whose weights it shares.
    """

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.bag = bag

    def forward(
        self, tokens: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """As `nn.EmbeddingBag.forward`."""
        if tokens.ndim != 2 or offsets is not None:
            given: Tensor = self.bag(tokens, offsets, per_sample_weights)
            return given
        vectors = nn.functional.embedding(tokens, self.bag.weight)
        if per_sample_weights is not None:
            vectors = vectors * per_sample_weights[..., None]
        padding = self.bag.padding_idx
        counted = torch.ones_like(tokens) if padding is None else (tokens != padding).to(tokens.dtype)
        counted = counted.to(vectors.dtype)[..., None]
        if self.bag.mode == "max":
            largest = torch.where(counted > 0, vectors, torch.full_like(vectors, -3.0e38)).amax(1)
            return torch.where(counted.amax(1) > 0, largest, torch.zeros_like(largest))
        total = (vectors * counted).sum(1)
        return total if self.bag.mode == "sum" else total / counted.sum(1).clamp_min(1.0)


def with_plain_bags(model: nn.Module) -> None:
    """Puts a `Bag` in the place of every `nn.EmbeddingBag`, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.EmbeddingBag) and name:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Bag(module))
