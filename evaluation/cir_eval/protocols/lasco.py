"""LaSCo (Levy et al., AAAI 2024), as published: COCO's images of 2014, one caption and one target a query.

lasco_{train,val}.json        {"qid", "query-image": [id, path], "query-text", "target-image": [id, path]}
lasco_val_corpus.json         the images of the validation's gallery, [id, path] each
train2014/, val2014/          the images
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cir_eval.datasets.files import json_list, text_field
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import row_of, to_rows
from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import has_file

__all__ = ["PROTOCOLS"]


def _load(root: Path, split: str) -> list[Part]:
    path = root / f"lasco_{split}.json"
    entries = json_list(path, "a list of queries")
    pairs = [(_image(one, "query-image", path), _image(one, "target-image", path)) for one in entries]
    corpus = root / f"lasco_{split}_corpus.json"
    if has_file(corpus, DatasetError):
        names = [_place(one, corpus) for one in json_list(corpus, "a list of images")]
    else:  # of the training split no list is published: its gallery are the images that its queries name
        names = [name for pair in pairs for name in pair]
    rows = {name: row for row, name in enumerate(dict.fromkeys(names))}
    queries = tuple(
        Query(
            key=str(number),
            reference=row_of(rows, reference, path.name),
            texts=(text_field(one, "query-text", path),),
            correct=to_rows([row_of(rows, target, path.name)]),
        )
        for number, (one, (reference, target)) in enumerate(zip(entries, pairs, strict=True))
    )
    return [Part("all", tuple(rows), [root / name for name in rows], queries)]


def _image(entry: Any, name: str, path: Path) -> str:
    return _place(entry.get(name) if isinstance(entry, dict) else None, path)


def _place(value: Any, path: Path) -> str:
    place = value[1] if isinstance(value, list) and len(value) == 2 else None
    if not isinstance(place, str) or place.startswith("/") or ".." in Path(place).parts:
        raise DatasetError(f"{path}: an image is {shown(value)}; expected its number and its path")
    return place


PROTOCOLS = (
    Protocol(
        name="lasco/lasco",
        source="levymsn/LaSCo: the caption, the gallery of its list; the reference leaves",
        splits=("val", "train"),
        ks=(1, 5, 10, 50),
        measure=("R@1", "R@5", "R@10", "R@50"),
        load=_load,
    ),
)
"""The protocol on LaSCo."""
