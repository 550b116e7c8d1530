"""i-CIR: mean average precision in the database of each instance; correct are the texts' equals."""

from __future__ import annotations

from pathlib import Path

from cir_eval.datasets.icir import Entry, read_entries
from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows

__all__ = ["PROTOCOLS"]


def _load(root: Path, split: str) -> list[Part]:  # noqa: ARG001 - there is one
    database, queries = (
        _by_instance(read_entries(root, f"{name}_files.csv")) for name in ("database", "query")
    )
    return [_part(root, name, database.get(name, []), asked) for name, asked in queries.items()]


def _part(root: Path, instance: str, database: list[Entry], asked: list[Entry]) -> Part:
    pictures = dict.fromkeys(one.path for one in database)
    rows = {path: row for row, path in enumerate(pictures)}
    references = {path: len(rows) + row for row, path in enumerate(dict.fromkeys(one.path for one in asked))}
    texts: dict[str, list[int]] = {}
    for one in database:
        texts.setdefault(one.text, []).append(rows[one.path])
    queries = tuple(
        Query(
            key=str(number),
            reference=references[one.path],
            texts=(one.text,),
            correct=to_rows(texts.get(one.text, [])),
        )
        for number, one in enumerate(asked)
    )
    paths = [root / path for path in (*rows, *references)]
    ids = (*rows, *(f"query: {path}" for path in references))
    return Part(instance, ids, paths, queries, candidates=len(rows))


def _by_instance(entries: list[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for one in entries:
        found.setdefault(one.instance, []).append(one)
    return found


PROTOCOLS = (
    Protocol(
        name="icir/icir",
        source="billpsomas/icir: each instance in its own database; correct are instance and text",
        splits=("all",),
        ks=(1, 5, 10),
        measure=("mAP",),
        load=_load,
        reference_excluded=False,
        map_ks=(0,),
    ),
)
"""The protocol on i-CIR. The figure of its authors is `pooled`; `mean` is that over instances."""
