"""Word-level text encoders: tokens to a unit vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cir_export.models.base import unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.recurrent import Recurrent
from cir_infer.errors import UsageError, shown

__all__ = [
    "BiGRUEncoder",
    "LSTMEncoder",
    "LastStateLSTMEncoder",
    "TextEncoder",
    "TextSettings",
    "build_text_encoder",
]


@dataclass(frozen=True)
class TextSettings:
    """`text` of a configuration.

    Attributes:
        vocabulary_size: V, the number of word vectors, special tokens included.
        encoder: "bigru", "lstm" (over all steps, see `pooling`) or "lstm-last" (last step).
        word_dim: length of a word vector.
        hidden: of the LSTM; the BiGRU has half the embedding's dimension each way.
        dropout: before the LSTM's linear layer, in training.
        pooling: of "lstm" over a text's steps: "max" as the code of naver/artemis, or "mean" as its paper.
        normalize: whether the embedding is divided by its norm (TIRG's public models do not); always for
            "bigru" and "lstm".
    """

    vocabulary_size: int
    encoder: str = "bigru"
    word_dim: int = 300
    hidden: int = 1024
    dropout: float = 0.1
    normalize: bool = True
    pooling: str = "max"


class BiGRUEncoder(nn.Module):
    """Word vectors, a bidirectional GRU, its two last states side by side, unit length."""

    def __init__(self, settings: TextSettings, embedding_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(settings.vocabulary_size, settings.word_dim)
        self.rnn = Recurrent("gru", settings.word_dim, embedding_dim // 2, bidirectional=True)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """From int (n, T) and int (n,) to float (n, D) of unit length."""
        _, last = self.rnn(self.embed(tokens), lengths)
        return unit(last.float())


class LSTMEncoder(nn.Module):
    """Word vectors, an LSTM, its maximum or mean over a text's own steps, linear layer, unit length.

    ARTEMIS' paper takes the average, its code the maximum; a public checkpoint is of the code.

    The authors' code runs over the padding as well, so a text's embedding depends on the longest one of
    its batch. Lengths that count the padding reproduce that.
    """

    def __init__(self, settings: TextSettings, embedding_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(settings.vocabulary_size, settings.word_dim)
        self.rnn = Recurrent("lstm", settings.word_dim, settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.project = nn.Linear(settings.hidden, embedding_dim)
        self.mean = settings.pooling == "mean"

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """From int (n, T) and int (n,) to float (n, D) of unit length."""
        outputs, _ = self.rnn(self.embed(tokens), lengths)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        # An LSTM's outputs lie in (-1, 1), so -2 never wins.
        valid = (steps[None, :] < lengths[:, None].to(tokens.device)).unsqueeze(-1)
        if self.mean:
            total = torch.where(valid, outputs, torch.zeros_like(outputs)).sum(1)
            mean = total / lengths[:, None].to(total)
            return unit(self.project(self.dropout(mean)).float())
        longest = torch.where(valid, outputs, torch.full_like(outputs, -2.0)).amax(1)
        return unit(self.project(self.dropout(longest)).float())


class LastStateLSTMEncoder(nn.Module):
    """Word vectors, an LSTM, its output at a text's last word, linear layer (Vo et al., CVPR 2019)."""

    def __init__(self, settings: TextSettings, embedding_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(settings.vocabulary_size, settings.word_dim)
        self.rnn = Recurrent("lstm", settings.word_dim, settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.project = nn.Linear(settings.hidden, embedding_dim)
        self.to_unit = settings.normalize

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (n, T) and lengths (n,) to float (n, D), of unit length if the settings say so."""
        _, last = self.rnn(self.embed(tokens), lengths)
        text: Tensor = self.project(self.dropout(last)).float()
        return unit(text) if self.to_unit else text


TextEncoder = BiGRUEncoder | LSTMEncoder | LastStateLSTMEncoder


def build_text_encoder(values: Mapping[str, Any], embedding_dim: int) -> TextEncoder:
    """The encoder that `text` of a configuration describes.

    Raises:
        UsageError: a key or value does not fit.
    """
    settings = parse(TextSettings, values, "text")
    if min(settings.vocabulary_size, settings.word_dim, settings.hidden) < 1:
        raise UsageError("text: a size is 0; expected vocabulary_size, word_dim and hidden of at least 1")
    if settings.pooling not in ("max", "mean"):
        raise UsageError(f"text.pooling: {shown(settings.pooling)}; expected max or mean")
    if settings.pooling != "max" and settings.encoder != "lstm":
        raise UsageError(f"text.pooling: {shown(settings.pooling)} belongs to encoder lstm")
    if settings.encoder == "lstm-last":
        return LastStateLSTMEncoder(settings, embedding_dim)
    if not settings.normalize:
        raise UsageError(f"text.normalize: {shown(settings.encoder)} always gives unit vectors")
    if settings.encoder == "lstm":
        return LSTMEncoder(settings, embedding_dim)
    if settings.encoder != "bigru":
        raise UsageError(
            f"text.encoder: {shown(settings.encoder)} is not known; expected bigru, lstm or lstm-last"
        )
    if embedding_dim % 2:
        raise UsageError(f"embedding_dim: {embedding_dim} is odd; a BiGRU has half of it each way")
    return BiGRUEncoder(settings, embedding_dim)
