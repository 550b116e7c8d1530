"""FashionIQ: five repositories, five protocols; their recalls are not comparable with each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cir_eval.datasets import fashioniq
from cir_eval.datasets.fashioniq import Pair
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import row_of, to_rows

__all__ = ["PROTOCOLS"]

Texts = Callable[[str, Pair], list[tuple[str, ...]]]
"""The texts of the queries that a pair of a category makes."""


def _both_orders(category: str, pair: Pair) -> list[tuple[str, ...]]:  # noqa: ARG001
    first, second = pair.captions
    return [(first, second), (second, first)]


def _both_orders_joined(category: str, pair: Pair) -> list[tuple[str, ...]]:  # noqa: ARG001
    first, second = pair.captions
    return [(f"{first} and {second}",), (f"{second} and {first}",)]


def _once(category: str, pair: Pair) -> list[tuple[str, ...]]:  # noqa: ARG001
    return [pair.captions]


def _each_caption(category: str, pair: Pair) -> list[tuple[str, ...]]:  # noqa: ARG001
    return [(caption,) for caption in pair.captions]


def _with_category(category: str, pair: Pair) -> list[tuple[str, ...]]:
    first, second = pair.captions
    return [(f"{category} {first} and it {second}".lower(),)]


def _split_files(texts: Texts) -> Callable[[Path, str], list[Part]]:
    """A part a category; the gallery is the category's split file."""

    def load(root: Path, split: str) -> list[Part]:
        return [
            _part(
                root,
                category,
                fashioniq.read_gallery(root, category, split),
                _queries_of(root, category, split),
                texts,
            )
            for category in fashioniq.CATEGORIES
        ]

    return load


def _named_images(root: Path, split: str) -> list[Part]:
    """A part a category; the gallery is what its pairs name (VAL)."""
    parts = []
    for category in fashioniq.CATEGORIES:
        pairs = _queries_of(root, category, split)
        names = list(
            dict.fromkeys(name for _, pair in pairs for name in (pair.reference, pair.target) if name)
        )
        parts.append(_part(root, category, names, pairs, _each_caption))
    return parts


def _pooled(root: Path, split: str) -> list[Part]:
    """One part: three categories in one gallery (ComposeAE)."""
    names = [
        name for category in fashioniq.CATEGORIES for name in fashioniq.read_gallery(root, category, split)
    ]
    pairs = [pair for category in fashioniq.CATEGORIES for pair in _queries_of(root, category, split)]
    return [_part(root, "all", list(dict.fromkeys(names)), pairs, _with_category)]


def _queries_of(root: Path, category: str, split: str) -> list[tuple[str, Pair]]:
    return [(category, pair) for pair in fashioniq.read_pairs(root, category, split)]


def _part(root: Path, name: str, names: list[str], pairs: list[tuple[str, Pair]], texts: Texts) -> Part:
    rows = {image: row for row, image in enumerate(names)}
    queries = tuple(
        Query(
            key=f"{number}.{order}",
            reference=row_of(rows, pair.reference, f"a pair of {category}"),
            texts=asked,
            correct=to_rows(
                [] if pair.target is None else [row_of(rows, pair.target, f"a pair of {category}")]
            ),
        )
        for number, (category, pair) in enumerate(pairs)
        for order, asked in enumerate(texts(category, pair))
    )
    return Part(name, tuple(names), fashioniq.image_paths(root, names), queries)


def _protocol(
    repository: str,
    source: str,
    load: Callable[[Path, str], list[Part]],
    ks: tuple[int, ...] = (10, 50),
    reference_excluded: bool = True,
) -> Protocol:
    return Protocol(
        name=f"fashioniq/{repository}",
        source=source,
        splits=fashioniq.SPLITS,
        ks=ks,
        measure=("R@10", "R@50"),
        load=load,
        reference_excluded=reference_excluded,
    )


PROTOCOLS = (
    _protocol(
        "artemis",
        "naver/artemis: two queries a pair (both orders of its captions), split file, reference removed",
        _split_files(_both_orders),
    ),
    _protocol(
        "clip4cir",
        "ABaldrati/CLIP4Cir: one query a pair, split file, reference stays",
        _split_files(_once),
        reference_excluded=False,
    ),
    _protocol(
        "cosmo",
        'CoSMo: two queries a pair ("c1 and c2", "c2 and c1"), split file, reference removed',
        _split_files(_both_orders_joined),
    ),
    _protocol(
        "val",
        "yanbeic/VAL: each caption a query, gallery of the pairs' own images, reference removed",
        _named_images,
    ),
    _protocol(
        "composeae",
        'ecom-research/ComposeAE: "category c1 and it c2", one gallery of three categories, reference '
        "stays; without its accumulator that carries hits from one K to the next",
        _pooled,
        ks=(1, 5, 10, 50, 100),
        reference_excluded=False,
    ),
)
"""The protocols on FashionIQ."""
