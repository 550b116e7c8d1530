"""What a class token is made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from cir_export.models.base import InParts
from cir_export.models.encoders.transformer import Transformer

__all__ = ["class_token_in_parts"]


def class_token_in_parts(
    tokens: Tensor,
    transformer: Transformer,
    norm: nn.LayerNorm,
    project: Callable[[Tensor], Tensor],
    matrix: Tensor,
) -> InParts:
    """An embedding as the sum of what the class token took from each patch, in all layers and heads.

    With the attention and the norms as they are at this input, all that the class token is made of adds
    up: its start, what it took from patches, its MLPs and biases. The last norm is affine then.

    Args:
        tokens: the class token and the patches, as the blocks take them, (n, 1 + patches, W).
        transformer: the blocks.
        norm: behind them.
        project: from the normed state (n, W) to the embedding (n, D).
        matrix: (W, D), what `project` multiplies with.
    """
    x, taken = transformer.in_parts(tokens)
    state = x[:, 0]
    rows = project(norm(state))
    deviation = (state.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    taken = (taken - taken.mean(-1, keepdim=True)) / deviation[:, None]
    parts = (taken * norm.weight) @ matrix
    side = round(taken.shape[1] ** 0.5)
    return InParts(rows, parts.view(-1, side, side, rows.shape[1]), rows - parts.sum(1))
