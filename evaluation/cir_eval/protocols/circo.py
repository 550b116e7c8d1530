"""CIRCO: mean average precision over several targets, under four ways to ask.

The reference stays in the gallery or leaves it, and the text is the caption alone or also names what
reference and targets have in common. Figures of different ways are not comparable.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cir_eval.datasets import circo
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import row_of, to_rows

__all__ = ["PROTOCOLS"]


def _load(sentence: str, root: Path, split: str) -> list[Part]:
    gallery = circo.read_gallery(root)
    rows = {str(number): row for row, number in enumerate(gallery)}
    where = f"annotations/{split}.json"
    queries = []
    for one in circo.read_annotations(root, split):
        target = [] if one.target is None else [row_of(rows, str(one.target), where)]
        queries.append(
            Query(
                key=one.key,
                reference=row_of(rows, str(one.reference), where),
                texts=(sentence.format(caption=one.caption, concept=one.concept),),
                correct=to_rows([row_of(rows, str(number), where) for number in one.targets]),
                also={"target": to_rows(target)} if target else {},
                aspects=one.aspects,
            )
        )
    return [Part("all", tuple(rows), list(gallery.values()), tuple(queries))]


def _protocol(name: str, source: str, sentence: str, excluded: bool) -> Protocol:
    return Protocol(
        name=f"circo/{name}",
        source=source,
        splits=circo.SPLITS,
        ks=(5, 10, 25, 50),
        measure=("mAP@5",),
        load=partial(_load, sentence),
        reference_excluded=excluded,
        map_ks=(5, 10, 25, 50),
        aspect_k=10,
        submission="circo",
    )


_CAPTION, _CONCEPT = "{caption}", "find {concept} but {caption}"

PROTOCOLS = (
    _protocol("searle", "SEARLE, LinCIR, CIReVL: the caption, the reference stays", _CAPTION, False),
    _protocol("covr", "CoVR: the caption, the reference leaves", _CAPTION, True),
    _protocol("magiclens", 'MagicLens: "find CONCEPT but CAPTION", the reference stays', _CONCEPT, False),
    _protocol("concept", "the same sentence, the reference leaves", _CONCEPT, True),
)
"""The protocols on CIRCO."""
