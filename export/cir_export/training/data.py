"""A split of a data set in memory: decoded pictures, tokens, and which query belongs to what."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from cir_eval.datasets.scenes import Split
from cir_export.tokenization import token_batch
from cir_infer.bundle.manifest import PixelInput
from cir_infer.console.progress import progress_bar
from cir_infer.errors import TrainingError, shown
from cir_infer.inputs.preprocess import preprocess

__all__ = ["QuerySet", "decode_images", "family_batches", "query_set"]


@dataclass(frozen=True)
class QuerySet:
    """The queries of a split over its images, all in memory.

    Attributes:
        images: uint8 (N, H, W, 3), the split's gallery.
        tokens: int64 (Q, T), padded on the right.
        lengths: int64 (Q,).
        references: int64 (Q,) rows of `images`.
        targets: int64 (Q,) rows of `images`.
        families: int64 (Q,): queries of one family share a batch.
        kinds: what each query modifies.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    references: Tensor
    targets: Tensor
    families: Tensor
    kinds: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kinds)


def query_set(split: Split, view: str, spec: PixelInput, tokenizer: Tokenizer, threads: int) -> QuerySet:
    """Decode a split.

    Raises:
        TrainingError: the split has no queries.
        ImageError: a picture is missing or damaged.
    """
    if not split.queries:
        raise TrainingError(
            f"the split {shown(split.name)} of {split.root} has no queries; generate it with some"
        )
    tokens, lengths = token_batch(tokenizer, [q.text for q in split.queries])
    return QuerySet(
        images=decode_images(split, view, spec, threads),
        tokens=tokens,
        lengths=lengths,
        references=torch.tensor([split.rows[q.reference] for q in split.queries]),
        targets=torch.tensor([split.rows[q.target] for q in split.queries]),
        # A query without a family is one of its own.
        families=torch.tensor(
            [-1 - i if q.family is None else q.family for i, q in enumerate(split.queries)]
        ),
        kinds=tuple(q.kind for q in split.queries),
    )


def decode_images(split: Split, view: str, spec: PixelInput, threads: int) -> Tensor:
    """All pictures of a split, preprocessed as a device does: uint8 (N, H, W, 3)."""
    images = np.empty((len(split.ids), spec.height, spec.width, 3), np.uint8)

    def decode(row: int) -> None:
        images[row] = preprocess(split.image_path(split.ids[row], view), spec)

    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(decode, range(len(images)))
        for _ in progress_bar(done, len(images), description=f"decoding {split.name}", unit="image"):
            pass
    return torch.from_numpy(images)


def family_batches(families: Tensor, per_batch: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """The batches of one epoch: query numbers, whole families at a time, in an order of seed and epoch.

    Every query is in exactly one batch. Where the families do not fill whole batches, some hold more than
    `per_batch`; there is no batch where there are fewer.
    """
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    distinct, group = torch.unique(families, return_inverse=True)
    order = torch.argsort(group, stable=True)
    members = list(torch.split(order, torch.bincount(group).tolist()))
    shuffled = torch.randperm(len(distinct), generator=generator)
    if len(shuffled) >= per_batch:
        for chosen in torch.tensor_split(shuffled, len(shuffled) // per_batch):
            yield torch.cat([members[family] for family in chosen.tolist()])
