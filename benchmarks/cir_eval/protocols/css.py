"""CSS: TIRG's protocol. An image is correct if it shows the same scene as the target."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets import css
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import rows_by_label

__all__ = ["PROTOCOLS"]


def _tirg(root: Path, split: str) -> list[Part]:
    content = css.read_split(root, split)
    same = rows_by_label(content.labels)
    queries = tuple(
        Query(f"{number}:{pair}", source, (mod.text,), same[content.labels[target]])
        for number, mod in enumerate(content.modifications)
        for pair, (source, target) in enumerate(zip(mod.sources, mod.targets, strict=True))
    )
    ids = tuple(path.name for path in content.images)
    return [Part("all", ids, content.images, queries)]


PROTOCOLS = (
    Protocol(
        name="css/tirg",
        source="google/tirg: 3D to 3D, all images of the split, reference removed, equal label is correct",
        splits=css.SPLITS,
        ks=(1, 5, 10, 50, 100),
        measure=("R@1",),
        load=_tirg,
    ),
)
"""The protocol on CSS."""
