"""What generated data sets share: queries as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import read_json

__all__ = ["Query", "lines_of", "queries_of", "query_to_json", "write_lines"]

T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """One query: a reference, the text that modifies it, and its only correct answer.

    Attributes:
        reference: id of the reference.
        text: the modifier.
        target: id of the one item of the split that answers.
        kind: what is modified, as the data set names it.
        family: number of the family that the query belongs to (training only): its items are near
            each other and should share a batch.
        hard_negatives: ids of items that differ from the target by one attribute (not in training).
    """

    reference: str
    text: str
    target: str
    kind: str
    family: int | None = None
    hard_negatives: tuple[str, ...] = ()


def query_to_json(query: Query) -> dict[str, Any]:
    """A query as a line holds it."""
    entry: dict[str, Any] = {
        "reference": query.reference,
        "text": query.text,
        "target": query.target,
        "kind": query.kind,
    }
    if query.family is not None:
        entry["family"] = query.family
    if query.hard_negatives:
        entry["hard_negatives"] = list(query.hard_negatives)
    return entry


def queries_of(path: Path, known: Container[str], holder: Path) -> tuple[Query, ...]:
    """The queries of a file.

    Args:
        path: the file, one query a line.
        known: the ids that a query may name.
        holder: the file that these come from, for the message.

    Raises:
        DatasetError: the file is missing or damaged, or names another id.
    """
    queries = tuple(lines_of(path, _query))
    for query in queries:
        for id_ in (query.reference, query.target, *query.hard_negatives):
            if id_ not in known:
                raise DatasetError(
                    f"{path} names {shown(id_)}, which {holder} does not hold; generate the data set again"
                )
    return queries


def lines_of(path: Path, parse: Callable[[Any], T]) -> Iterator[T]:
    """Each line of a file of JSON lines, parsed.

    Raises:
        DatasetError: the file cannot be read, or a line is damaged; the message says which.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; generate the data set again") from error
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            yield parse(read_json(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path}, line {number}, is damaged: {error}; generate it again") from error


def write_lines(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a file of JSON lines."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            file.write(json.dumps(entry) + "\n")


def _query(entry: Any) -> Query:
    return Query(
        reference=str(entry["reference"]),
        text=str(entry["text"]),
        target=str(entry["target"]),
        kind=str(entry["kind"]),
        family=int(entry["family"]) if "family" in entry else None,
        hard_negatives=tuple(map(str, entry.get("hard_negatives", ()))),
    )
