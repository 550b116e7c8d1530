"""The split that is replayed: FashionIQ itself where it is at hand, else one of its shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cir_bench.latency.workload import photograph
from cir_bench.seeded_models import FASHIONIQ_WORDS, vocabulary_words
from cir_bench.table7.paper import GALLERIES, QUERIES
from cir_eval.protocols import protocol
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.texts import Text

__all__ = ["Category", "fashioniq_shaped", "real_fashioniq"]

_SIZE = (400, 600)
_PICTURES = 64


class Category(NamedTuple):
    """A category's gallery and queries.

    Attributes:
        name: e.g. "dress".
        images: the gallery.
        texts: one a query.
        references: the row of each query's reference.
    """

    name: str
    images: Sequence[ImageLike]
    texts: Sequence[Text]
    references: Sequence[int]


def real_fashioniq(root: Path) -> list[Category]:
    """FashionIQ's validation split under ARTEMIS' protocol.

    Raises:
        DatasetError: the data set is not in its published layout.
    """
    return [
        Category(
            part.name,
            part.images,
            [list(query.texts) for query in part.queries],
            [query.reference for query in part.queries],
        )
        for part in protocol("fashioniq/artemis").load(root, "val")
    ]


def fashioniq_shaped(seed: int = 0) -> list[Category]:
    """As many images and queries as FashionIQ has, of its usual size and length.

    64 different generated photographs stand for all images: what is in them changes neither decoding nor
    encoding time. Texts have 5 to 27 tokens, 13.7 on average, as FashionIQ's.
    """
    random = np.random.default_rng(seed)
    pictures = [photograph(*_SIZE, number) for number in range(_PICTURES)]
    words = np.array(vocabulary_words(FASHIONIQ_WORDS))
    return [
        Category(
            name,
            [pictures[number % _PICTURES] for number in range(GALLERIES[name])],
            [_captions(random, words) for _ in range(QUERIES[name])],
            random.integers(0, GALLERIES[name], QUERIES[name]).tolist(),
        )
        for name in GALLERIES
    ]


def _captions(random: np.random.Generator, words: np.ndarray[tuple[int], np.dtype[np.str_]]) -> list[str]:
    """A pair of captions; with start, and, end the tokens of both number 5 to 27."""
    total = int(np.clip(2 + random.gamma(5.0, 1.74), 2, 24))
    first = max(1, total // 2)
    chosen = random.choice(words, total).tolist()
    return [" ".join(chosen[:first]), " ".join(chosen[first:])]
