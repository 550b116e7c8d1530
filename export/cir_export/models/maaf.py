"""MAAF (Dodds et al., "Modality-Agnostic Attention Fusion for visual search with text feedback", 2020).

Positions of the trunk's last maps and words are tokens of one kind, which a transformer reads together:

    tokens = [W_1 x^1 positions; W_2 x^2 positions; words]          words: the states of an LSTM or GRU
    z = Transformer(tokens)
    q = l2(mean over levels of the mean over the level's positions of z)
    t = the same means over a target's own tokens, without the transformer

That is the paper's resolution-wise pooling. A row cannot serve as the reference. Where the paper leaves
room: blocks are pre-normalised, as CLIP's, and positions carry no code of their own; a word's place is in its
state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cir_export.models.base import RetrievalModel, Terms, unit
from cir_export.models.configuration import parse
from cir_export.models.encoders.image import PixelNormalization, PixelSettings, build_trunk, map_sides
from cir_export.models.encoders.pooling import averaged
from cir_export.models.encoders.recurrent import Recurrent
from cir_export.models.encoders.transformer import Transformer
from cir_export.models.encoders.words import padded_words, read_words
from cir_infer.errors import UsageError

__all__ = ["Maaf", "MaafSettings", "MaafTextSettings"]


@dataclass(frozen=True)
class MaafTextSettings:
    """`text` of MAAF's configuration.

    Attributes:
        vocabulary_size: V, special tokens included.
        word_dim: length of a word vector.
        hidden: of the LSTM.
        max_words: longest text in tokens, special tokens included; what stands beyond is not read.
    """

    vocabulary_size: int
    word_dim: int = 300
    hidden: int = 1024
    max_words: int = 64


@dataclass(frozen=True)
class MaafSettings:
    """Configuration of MAAF.

    Attributes:
        system: "maaf".
        image: see `PixelSettings`; its pooling is not read.
        text: see `MaafTextSettings`.
        embedding_dim: D, of every token.
        levels: how many of the trunk's last maps give tokens.
        blocks: of the transformer.
        heads: of its attention.
        cells: cells a side to which each level's map is averaged first; 0 leaves a map as it is, as in the
            paper. A map's side must be a multiple of it. Attention costs the square of all positions, which
            maps of a small trunk have many of.
    """

    system: str
    image: dict  # type: ignore[type-arg]
    text: dict  # type: ignore[type-arg]
    embedding_dim: int = 512
    levels: int = 2
    blocks: int = 2
    heads: int = 8
    cells: int = 0


class Maaf(RetrievalModel):
    """See the module's docstring."""

    system: ClassVar[str] = "maaf"
    term_names: ClassVar[tuple[str, ...]] = ("similarity",)
    reference_is_gallery_row = False

    def __init__(self, settings: MaafSettings) -> None:
        image = parse(PixelSettings, settings.image, "image")
        text = parse(MaafTextSettings, settings.text, "text")
        dim = settings.embedding_dim
        if min(dim, settings.levels, settings.blocks, settings.heads, *_sizes(text)) < 1:
            raise UsageError("model: a size is 0; expected at least 1")
        if dim % settings.heads:
            raise UsageError(f"model.heads: {settings.heads} do not divide embedding_dim {dim}")
        super().__init__(dim)
        self.normalize = PixelNormalization(image.mean, image.std)
        self.trunk = build_trunk(image)
        self.trunk_levels = settings.levels
        channels = self.trunk.channels[-settings.levels :]
        if len(channels) < settings.levels:
            raise UsageError(f"model.levels: {settings.levels}; the trunk has {len(channels)} stages")
        sides = map_sides(self.trunk, image.size)[-settings.levels :]
        for side in sides if settings.cells else ():
            if side % settings.cells:
                raise UsageError(f"model.cells: {settings.cells} do not divide a map of {side} x {side}")
        self.sides = [settings.cells or side for side in sides]
        self.positions = [side * side for side in self.sides]
        self.maps = nn.ModuleList(nn.Conv2d(width, dim, 1) for width in channels)
        self.embed = nn.Embedding(text.vocabulary_size, text.word_dim)
        self.rnn = Recurrent("lstm", text.word_dim, text.hidden)
        self.words = nn.Linear(text.hidden, dim)
        self.max_words = text.max_words
        self.transformer = Transformer(dim, settings.blocks, settings.heads, "gelu")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Maaf:
        """See `RetrievalModel.from_config`; keys: those of `MaafSettings`."""
        return cls(parse(MaafSettings, config, "model"))

    def _tokens(self, images: Tensor) -> Tensor:
        """All positions of all levels as tokens: (n, P, D)."""
        maps = self.trunk.maps(self.normalize(images))[-len(self.positions) :]
        levels = [
            project(averaged(found, side)).flatten(2)
            for project, found, side in zip(self.maps, maps, self.sides, strict=True)
        ]
        return torch.cat(levels, 2).transpose(1, 2)

    def encode_gallery(self, images: Tensor) -> Tensor:
        """See `RetrievalModel.encode_gallery`."""
        return self._pooled(self._tokens(images))

    def encode_reference(self, images: Tensor) -> Tensor:
        """The tokens of an image, flattened: (n, P * D)."""
        return self._tokens(images).flatten(1)

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """How many words, then their tokens, zero beyond the last: (n, 1 + max_words * D)."""
        states, _ = self.rnn(self.embed(tokens), lengths)
        return padded_words(self.words(states), lengths, self.max_words)

    def compose(self, reference: Tensor, text: Tensor) -> Terms:
        """See `RetrievalModel.compose`."""
        places = sum(self.positions)
        words, mask = read_words(text, self.max_words, shorten=self.training)
        seen = reference.view(-1, places, self.embedding_dim).to(words.dtype)
        mask = torch.cat([mask.new_zeros(mask.shape[0], places), mask], 1)
        read = self.transformer(torch.cat([seen, words], 1), mask[:, None, None])
        return Terms(self._pooled(read[:, :places])[:, None], None)

    def trunks(self) -> list[nn.Module]:
        """See `RetrievalModel.trunks`."""
        return [self.trunk]

    def _pooled(self, tokens: Tensor) -> Tensor:
        levels = torch.split(tokens, self.positions, 1)
        return unit(torch.stack([level.float().mean(1) for level in levels]).mean(0))


def _sizes(text: MaafTextSettings) -> Sequence[int]:
    return (text.vocabulary_size, text.word_dim, text.hidden, text.max_words)
