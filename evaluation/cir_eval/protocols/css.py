"""CSS: TIRG's protocol. An image is correct if it shows the same scene as the target."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cir_eval.datasets import css
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import rows_by_label

__all__ = ["PROTOCOLS"]


def _tirg(root: Path, split: str, drawn: bool) -> list[Part]:
    content = css.read_split(root, split)
    same = rows_by_label(content.labels)
    queries = tuple(
        Query(f"{number}:{pair}", source, (mod.text,), same[content.labels[target]])
        for number, mod in enumerate(content.modifications)
        for pair, (source, target) in enumerate(zip(mod.sources, mod.targets, strict=True))
    )
    ids = tuple(path.name for path in content.images)
    references = css.drawings(content) if drawn else None
    return [Part("all", ids, content.images, queries, references)]


PROTOCOLS = (
    Protocol(
        name="css/tirg",
        source="google/tirg: 3D to 3D, all images of the split, reference removed, equal label is correct",
        splits=css.SPLITS,
        ks=(1, 5, 10, 50, 100),
        measure=("R@1",),
        load=partial(_tirg, drawn=False),
    ),
    Protocol(
        name="css/tirg-2d-to-3d",
        source="Vo et al.: 2D to 3D, references drawn flat as google/tirg draws them, else as css/tirg",
        splits=css.SPLITS,
        ks=(1, 5, 10, 50, 100),
        measure=("R@1",),
        load=partial(_tirg, drawn=True),
    ),
)
"""The protocols on CSS."""
