"""Texts as an encoder of PyTorch's takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor


def token_batch(tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Tokens of a batch of texts or pairs of texts.

    Returns:
        int64 tokens (n, T), padded on the right with zeros, and int64 lengths (n,).
    """
    encoded = [torch.tensor(one.ids) for one in tokenizer.encode_batch(list(texts))]
    lengths = torch.tensor([len(one) for one in encoded])
    return torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=0), lengths
