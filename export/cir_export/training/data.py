"""Batches of a training split: which queries, their tokens and their pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cir_export.training.images import Images, in_processes
from cir_export.training.sources.contract import TrainingSplit

__all__ = ["Batch", "TextTokens", "TrainingQueries", "family_batches"]

Numbers = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Queries that are learned from together. Every picture stands in it once, whatever its roles.

    Attributes:
        tokens: int64 (B, T), padded on the right.
        lengths: int64 (B,).
        texts: the captions of each query.
        images: uint8 (U, H, W, 3), or float32 (U, F) for models on features; or the embeddings of the
            pictures, where they were encoded before.
        references: int64 (B,), places in `images`.
        targets: int64 (T,), places in `images` of the distinct targets.
        own: int64 (B,), each query's own target as a place in `targets`.
    """

    tokens: Tensor
    lengths: Tensor
    texts: list[tuple[str, ...]]
    images: Tensor
    references: Tensor
    targets: Tensor
    own: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device; lengths stay, as packing reads them on the CPU."""
        images, references, targets, own = (
            part.to(device) for part in (self.images, self.references, self.targets, self.own)
        )
        return Batch(self.tokens.to(device), self.lengths, self.texts, images, references, targets, own)


class TextTokens:
    """Texts as the exported model will read them.

    Args:
        tokenizer: with cleaning and special tokens inside.
        text: `text` of a bundle's manifest: the padding, the longest text, how two captions are joined.
    """

    def __init__(self, tokenizer: Tokenizer, text: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self._pad, self._longest = int(text["pad_id"]), int(text["max_tokens"])
        self._joined = str(text["captions"])
        self._fixed = bool(text.get("fixed_length", False))

    def __call__(self, texts: Sequence[tuple[str, ...]]) -> tuple[Tensor, Tensor]:
        """int64 tokens (n, T), padded on the right, and lengths (n,); a padding that is read is counted.

        A text that is too long loses what stands before its last token, the one that ends it.
        """
        rows = [self._fitting(one.ids) for one in self.tokenizer.encode_batch([self._one(t) for t in texts])]
        if self._fixed:
            rows = [[*row, *[self._pad] * (self._longest - len(row))] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True, padding_value=self._pad
        )
        return padded, lengths

    def _one(self, texts: tuple[str, ...]) -> str | tuple[str, str]:
        if len(texts) == 1:
            return texts[0]
        if self._joined == "pair":
            return texts[0], texts[1]
        if self._joined == "and:clip4cir":
            return f"{texts[0].strip('.?, ').capitalize()} and {texts[1].strip('.?, ')}"
        return self._joined.join(texts)

    def _fitting(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self._longest else [*ids[: self._longest - 1], ids[-1]]


@dataclass(frozen=True)
class TrainingQueries:
    """A training split with its pictures and tokens at hand.

    Attributes:
        split: the queries.
        images: their pictures.
        tokens: their texts.
        seed: of the order of the batches, of what a data set leaves open, of flips and crops.
        per_batch: families in a batch.
    """

    split: TrainingSplit
    images: Images
    tokens: TextTokens
    seed: int
    per_batch: int

    def numbers(self, epoch: int) -> list[Tensor]:
        """The query numbers of each batch of an epoch."""
        families = self.split.families
        every = torch.arange(len(self.split)) if families is None else torch.tensor(families)
        return list(family_batches(every, self.per_batch, self.seed, epoch))

    def batches(self, epoch: int, done: int = 0, encoded: Tensor | None = None) -> Iterator[Batch]:
        """The batches of an epoch, without the first `done`; of `encoded` rows for pictures, if given.

        What a batch holds follows from seed, epoch and its place alone, so an interrupted epoch goes on with
        the same ones.
        """
        keys = [(epoch, numbers.numpy()) for numbers in self.numbers(epoch)[done:]]
        workers = 0 if self.images.in_memory or encoded is not None else self.images.workers
        make = partial(self._arrays, pictures=encoded is None)
        for made in in_processes(make, keys, workers):
            images, texts, references, targets, own = made
            found = torch.from_numpy(images)
            tokens, lengths = self.tokens(texts)
            yield Batch(
                tokens,
                lengths,
                texts,
                found if encoded is None else encoded[found],
                *map(torch.from_numpy, (references, targets, own)),
            )

    def _arrays(
        self, key: tuple[int, Numbers], pictures: bool
    ) -> tuple[npt.NDArray[Any], list[tuple[str, ...]], Numbers, Numbers, Numbers]:
        epoch, numbers = key
        found = [self.split.triplet(number, (self.seed << 20) + epoch) for number in numbers.tolist()]
        reference_rows = np.array([one.reference for one in found])
        target_rows, own = np.unique([one.target for one in found], return_inverse=True)
        rows = np.unique(np.concatenate([reference_rows, target_rows]))
        dice = [np.random.default_rng((self.seed, epoch, int(row))) for row in rows]
        return (
            self.images.take(rows.tolist(), dice) if pictures else rows,
            [one.texts for one in found],
            np.searchsorted(rows, reference_rows),
            np.searchsorted(rows, target_rows),
            own.reshape(-1),
        )


def family_batches(families: Tensor, per_batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The batches of one epoch: query numbers, whole families at a time, in an order of seed and epoch.

    Every query is in exactly one batch. Where the families do not fill whole batches, some hold more than
    `per_batch`; there is no batch where there are fewer.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    distinct, group = torch.unique(families, return_inverse=True)
    order = torch.argsort(group, stable=True)
    ends = torch.bincount(group).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    shuffled = torch.randperm(len(distinct), generator=generator)
    if len(shuffled) >= per_batch:
        for chosen in torch.tensor_split(shuffled, len(shuffled) // per_batch):
            spans = zip(starts[chosen].tolist(), ends[chosen].tolist(), strict=True)
            yield torch.cat([order[start:end] for start, end in spans])
