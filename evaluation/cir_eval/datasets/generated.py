"""What generated data sets share: a description, queries as lines of JSON, names that become paths."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import has_file, lines_in, read_json, text_of

__all__ = [
    "Query",
    "check_split",
    "description_of",
    "file_name",
    "lines_of",
    "queries_of",
    "query_to_json",
    "write_lines",
]

T = TypeVar("T")

_WRONG = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""What taking values out of strangers' JSON may raise."""


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


def description_of(
    path: Path, what: str, remedy: str, written: tuple[str, int], parse: Callable[[Any], T]
) -> T:
    """What the description file of a data set says.

    Args:
        path: the file, which is written last, so that its presence says that the data set is whole.
        what: it is, as "a data set of scenes".
        remedy: what to do where there is none, as it follows a semicolon.
        written: the name of the format and its version that this release reads.
        parse: of what the file holds.

    Raises:
        DatasetError: there is none, it is damaged, or of another format or version.
    """
    if not has_file(path, DatasetError):
        raise DatasetError(f"{path.parent} holds no complete {what[2:]} ({path.name} is missing); {remedy}")
    try:
        found = read_json(path.read_text(encoding="utf-8"))
        form, version = found["format"], found["version"]
        if (form, version) == written:
            return parse(found)
    except (*_WRONG, OSError) as error:
        raise DatasetError(f"{path} does not describe {what} ({shown(error)}); make it again") from error
    raise DatasetError(
        f"{path} says {shown(form)} version {shown(version)}; this release reads {written[0]} version "
        f"{written[1]}: make the data set again, or use the release that wrote it"
    )


def check_split(root: Path, name: str, splits: Sequence[str]) -> None:
    """Make sure that a data set has a split.

    Raises:
        DatasetError: it has not.
    """
    if name not in splits:
        raise DatasetError(f"{root} has no split {shown(name)}; it has {', '.join(splits)}")


def file_name(text: Any) -> str:
    """A name out of a file, of which a path is made.

    Raises:
        ValueError: it leads elsewhere than into the folder that it is put behind.
    """
    name = str(text)
    if not name or Path(name).name != name or "\0" in name:
        raise ValueError(f"{shown(name)} is no file's name")
    return name


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
        text = text_of(path, "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read: {shown(error)}; generate the data set again") from error
    for number, line in enumerate(lines_in(text), start=1):
        try:
            yield parse(read_json(line))
        except _WRONG as error:
            raise DatasetError(
                f"{path}, line {number}, is damaged: {shown(error)}; generate it again"
            ) from error


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
