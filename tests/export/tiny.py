"""Models small enough to build, train a step and export in a moment."""

from __future__ import annotations

import torch
from torch import Tensor


def config(system: str = "artemis", **changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "system": system,
        "embedding_dim": 24,
        "image": {"trunk": "small", "pooling": "grid", "size": 24, "channels": [4, 6, 8]},
        "text": {"encoder": "bigru", "vocabulary_size": 30, "word_dim": 10},
    }
    return values | changes


def batch(seed: int = 0, n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 24, 24, 3), dtype=torch.uint8, generator=random)
    tokens = torch.randint(0, 30, (n, 9), generator=random)
    lengths = torch.randint(1, 10, (n,), generator=random)
    return images, tokens, lengths
