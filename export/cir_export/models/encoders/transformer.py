"""A pre-norm transformer as CLIP and SigLIP have it, under OpenAI's parameter names."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

__all__ = [
    "ACTIVATIONS",
    "SelfAttention",
    "Transformer",
    "attend",
    "attended",
    "brought",
    "in_heads",
    "perceptron",
]

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
"""Of the layers between; which one it was cannot be seen in weights."""


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _activation(name: str) -> nn.Module:
    """The module of one of `ACTIVATIONS`."""
    if name == "quick_gelu":
        return _QuickGelu()
    return nn.GELU(approximate="tanh" if name == "gelu_tanh" else "none")


def perceptron(width: int, inside: int, activation: str) -> nn.Sequential:
    """Two layers, from a width to itself; `activation` is one of `ACTIVATIONS`."""
    return nn.Sequential(
        OrderedDict(
            c_fc=nn.Linear(width, inside), gelu=_activation(activation), c_proj=nn.Linear(inside, width)
        )
    )


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of (n, S, W) over (n, T, W); `mask` is added to the scores."""
    return attended(queries, keys, values, heads, mask)[0]


def attended(
    queries: Tensor, keys: Tensor, values: Tensor, heads: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `attend` gives, and the weights of the attention, (n, heads, S, T)."""
    q, k, v = (in_heads(x, heads) for x in (queries, keys, values))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, -1)
    found: Tensor = weights @ v
    return found.transpose(1, 2).flatten(2), weights


def in_heads(x: Tensor, heads: int) -> Tensor:
    """(n, T, W) as (n, heads, T, W / heads)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def brought(weights: Tensor, values: Tensor) -> Tensor:
    """What each position brings to the first query: weights (n, heads, S, T) times values (n, T, W)."""
    return (weights[:, :, 0, :, None] * in_heads(values, weights.shape[1])).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Self-attention under the parameter names of `torch.nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, T, W) to the same."""
        q, k, v = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, 2)
        return self.out_proj(attend(q, k, v, self.heads, mask))  # type: ignore[no-any-return]

    def in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What it gives (n, T, W), and what each position brings to the first one, biases apart (n, T, W)."""
        q, k, v = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, 2)
        found, weights = attended(q, k, v, self.heads)
        values = v - self.in_proj_bias.chunk(3)[2]
        return self.out_proj(found), brought(weights, values) @ self.out_proj.weight.T


class _ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, activation: str, mlp: int, eps: float) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width, eps)
        self.mlp = perceptron(width, mlp, activation)
        self.ln_2 = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]

    def in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `SelfAttention.in_parts`."""
        found, parts = self.attn.in_parts(self.ln_1(x))
        x = x + found
        return x + self.mlp(self.ln_2(x)), parts


class Transformer(nn.Module):
    """Blocks of self-attention and a perceptron, each behind a norm and beside a shortcut.

    Args:
        width: of the states.
        layers: blocks.
        heads: of the attention.
        activation: one of `ACTIVATIONS`.
        mlp: width between the perceptron's layers; 0 stands for 4 times the width.
        eps: of the norms.
    """

    def __init__(
        self, width: int, layers: int, heads: int, activation: str, mlp: int = 0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            _ResidualAttentionBlock(width, heads, activation, mlp or 4 * width, eps) for _ in range(layers)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """States (n, T, W) to the same; `mask` is added to every block's scores."""
        for block in self.resblocks:
            x = block(x, mask)
        return x

    def in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The last states (n, T, W), and what the others brought to the first in all layers (n, T - 1, W)."""
        total: Tensor | None = None
        for block in self.resblocks:
            x, parts = block.in_parts(x)  # type: ignore[operator]
            total = parts if total is None else total + parts
        assert total is not None
        return x, total[:, 1:]
