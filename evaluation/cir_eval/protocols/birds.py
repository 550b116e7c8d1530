"""Birds-to-Words as a retrieval task, after SAC (Jandial et al., WACV 2022)."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets import birds
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows

__all__ = ["PROTOCOLS"]


def _sac(root: Path, split: str) -> list[Part]:
    comparisons = birds.read_comparisons(root, split)
    photos = list(dict.fromkeys(photo for c in comparisons for photo in (c.first, c.second)))
    rows = {photo: row for row, photo in enumerate(photos)}
    queries = tuple(
        Query(str(number), rows[c.first], (c.description,), to_rows([rows[c.second]]))
        for number, c in enumerate(comparisons)
        if c.first != c.second
    )
    return [Part("all", tuple(photos), [birds.image_path(root, photo) for photo in photos], queries)]


PROTOCOLS = (
    Protocol(
        name="birds/sac",
        source="Jandial et al. (no public code): an annotation is a query from the first photograph to the "
        "second, over all photographs of the split; removing the reference is our reading",
        splits=birds.SPLITS,
        ks=(1, 10, 50),
        measure=("R@10", "R@50"),
        load=_sac,
    ),
)
"""The protocol on Birds-to-Words."""
