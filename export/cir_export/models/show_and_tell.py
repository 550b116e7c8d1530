"""Show and Tell (Vinyals et al., CVPR 2015; a baseline of Vo et al., CVPR 2019).

An LSTM reads the image first and then the words; its last state is the query:

    q = W h        h = LSTM(W_r r, x_1, ..., x_T)

The words must wait for the image, so the text graph hands on the word vectors themselves: their number,
then `max_words` of them, in a row of fixed length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.cosine import CosineModel, EncoderSettings
from cir_export.models.encoders.text import LastStateLSTMEncoder
from cir_export.models.encoders.words import padded_words
from cir_infer.errors import UsageError

__all__ = ["ShowAndTell", "ShowAndTellSettings"]


@dataclass(frozen=True)
class ShowAndTellSettings(EncoderSettings):
    """Configuration of Show and Tell; its text encoder must be "lstm-last".

    Attributes:
        max_words: longest text in tokens, special tokens included; what stands beyond is not read.
    """

    max_words: int = 64


class ShowAndTell(CosineModel):
    """See the module's docstring."""

    system: ClassVar[str] = "show-and-tell"
    settings_type: ClassVar[type[EncoderSettings]] = ShowAndTellSettings
    text_encoder: LastStateLSTMEncoder

    def __init__(self, settings: ShowAndTellSettings) -> None:
        super().__init__(settings)
        if not isinstance(self.text_encoder, LastStateLSTMEncoder):
            raise UsageError("text.encoder: show-and-tell reads words with an LSTM; expected 'lstm-last'")
        if settings.max_words < 1:
            raise UsageError("model.max_words: 0; expected at least 1")
        self.max_words = settings.max_words
        self.show = nn.Linear(settings.embedding_dim, self.text_encoder.embed.embedding_dim)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """How many words, then their vectors, zero beyond the last: (n, 1 + max_words * word_dim)."""
        return padded_words(self.text_encoder.embed(tokens), lengths, self.max_words)

    def compose_vector(self, reference: Tensor, text: Tensor) -> Tensor:
        """See `CosineModel.compose_vector`."""
        encoder = self.text_encoder
        lengths = text[:, 0].long() + 1
        words = text[:, 1:].view(text.shape[0], self.max_words, -1)
        _, last = encoder.rnn(torch.cat([self.show(reference)[:, None], words], 1), lengths)
        return encoder.project(encoder.dropout(last))  # type: ignore[no-any-return]
