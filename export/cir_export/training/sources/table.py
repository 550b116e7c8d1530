"""A plain table of triplets: CSV, JSON lines or parquet with the columns reference, target and text.

    reference,target,text            and, if wanted, text2 (a second caption) and split
    dresses/1.jpg,dresses/7.jpg,is red and longer

Images are paths relative to the table's folder. The column `split` says train, validation or test; without
it all lines are for training. A folder holds one table a split: train.csv, validation.csv, test.csv.
The gallery of a split is every image that its lines name; lines with the same reference and text are one
query with several answers.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

from cir_eval.protocols.contract import Part, Protocol, Query
from cir_eval.protocols.rows import to_rows
from cir_export.training.configuration import DataSettings
from cir_export.training.sources.contract import FixedTriplets, Indexed, Measured, Source, Triplet
from cir_infer.errors import DatasetError, shown
from cir_infer.extras import require
from cir_infer.foreign import has_file, no_file, opened_file, read_json, unique_names

__all__ = ["open_table"]

_ENDINGS = (".csv", ".jsonl", ".parquet")
_SPLITS = ("train", "validation", "test")
_COLUMNS = ("reference", "target", "text")


class _Line(NamedTuple):
    reference: str
    target: str
    texts: tuple[str, ...]


def open_table(path: Path, settings: DataSettings) -> Source:  # noqa: ARG001
    """See the module's docstring.

    Raises:
        DatasetError: a table is missing or damaged, or lacks a column or a value.
    """
    lines: dict[str, list[_Line]] = {"validation": [], "test": []}
    row = Indexed()

    def training() -> Iterator[Triplet]:
        for table, split in _tables(path):
            for number, record in enumerate(_records(table), start=1):
                where = f"{table}, row {number}"
                named = record.get("split") or split
                if named not in _SPLITS:
                    raise DatasetError(f"{where}: split {shown(named)}; expected one of {', '.join(_SPLITS)}")
                line = _line(record, where)
                if named == "train":
                    yield Triplet(row(line.reference), line.texts, row(line.target))
                else:
                    lines[named].append(line)

    train = FixedTriplets((), training())
    folder = path if path.is_dir() else path.parent
    train.images = [_image(folder, str(name)) for name in row.rows]
    return Source(
        "table",
        train,
        _PROTOCOL,
        _measured(folder, "validation", lines["validation"]),
        _measured(folder, "test", lines["test"]),
    )


def _tables(path: Path) -> list[tuple[Path, str]]:
    if path.is_file():
        return [(path, "train")]
    if not path.is_dir():
        raise DatasetError(
            f"{path} {no_file(path)}; expected a table ({', '.join(_ENDINGS)}) or a folder of them"
        )
    found = [
        (path / f"{split}{ending}", split)
        for split in _SPLITS
        for ending in _ENDINGS
        if has_file(path / f"{split}{ending}", DatasetError)
    ]
    if "train" not in (split for _, split in found):
        raise DatasetError(f"{path} holds no train.csv, train.jsonl or train.parquet; expected one of them")
    return found


def _records(path: Path) -> Iterator[dict[str, object]]:
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise DatasetError(f"{path}: {shown(ending)} is no table; expected {', '.join(_ENDINGS)}")
    try:
        if ending == ".parquet":
            yield from _parquet(path)
        else:
            with io.TextIOWrapper(opened_file(path), "utf-8-sig", newline="") as file:
                if ending == ".csv":
                    yield from _csv(path, file)
                else:
                    for line in file:
                        if line.strip():
                            record = read_json(line, object_pairs_hook=unique_names)
                            yield record if isinstance(record, dict) else {}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read ({shown(error)}); expected a table in UTF-8") from error


def _csv(path: Path, file: TextIO) -> Iterator[dict[str, object]]:
    """Records of a table whose every cell has a column: a reader that is kind drops the rest of a line."""
    reader = csv.reader(file, strict=True)
    try:
        columns = next(reader, [])
        twice = [name for name in (*_COLUMNS, "text2", "split") if columns.count(name) > 1]
        if twice:
            raise DatasetError(
                f"{path} has the column {twice[0]} twice; expected each once (a second caption is text2)"
            )
        for cells in reader:
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise DatasetError(
                    f"{path}, line {reader.line_num}: {len(cells)} values in {len(columns)} columns; put a "
                    "text with a comma into double quotes"
                )
            if cells:
                yield dict(zip(columns, cells, strict=False))
    except csv.Error as error:
        raise DatasetError(
            f"{path}, line {reader.line_num}: {shown(error)}; close every quote, and double one inside quotes"
        ) from error


def _parquet(path: Path) -> Iterator[dict[str, object]]:
    require(f"{path}: parquet", "pyarrow", error=DatasetError)
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        wanted = [name for name in (*_COLUMNS, "text2", "split") if name in table.schema_arrow.names]
        for batch in table.iter_batches(columns=wanted):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DatasetError(f"{path} cannot be read as parquet ({shown(error)}); write it anew") from error


def _line(record: dict[str, object], where: str) -> _Line:
    values = []
    for column in _COLUMNS:
        value = record.get(column)
        if not isinstance(value, str) or not value.strip():
            raise DatasetError(
                f"{where}: {column} is {shown(value)}; expected the columns {', '.join(_COLUMNS)} with a "
                "text in each"
            )
        # One picture under two names would be two rows of the gallery, and a reference's twin its best hit.
        values.append(value if column == "text" else os.path.normpath(value))
    if values[0] == values[1]:
        raise DatasetError(f"{where}: the target is its own reference {shown(values[0])}; leave the row out")
    second = record.get("text2")
    texts = (values[2], second) if isinstance(second, str) and second.strip() else (values[2],)
    return _Line(values[0], values[1], texts)


def _image(folder: Path, name: str) -> str:
    """A path as text, a fifth of a `Path`'s memory."""
    path = os.path.join(folder, name)  # noqa: PTH118
    if not os.path.isfile(path):  # noqa: PTH113
        raise DatasetError(f"{path} is missing; expected images relative to the table's folder")
    return path


def _measured(folder: Path, split: str, lines: list[_Line]) -> Measured | None:
    if not lines:
        return None
    row = Indexed()
    answers: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    for line in lines:
        answers.setdefault((row(line.reference), line.texts), []).append(row(line.target))
    queries = tuple(
        Query(str(number), reference, texts, to_rows(sorted(set(targets))))
        for number, ((reference, texts), targets) in enumerate(answers.items())
    )
    names = tuple(str(name) for name in row.rows)
    return Measured(split, (Part("all", names, [_image(folder, name) for name in names], queries),))


def _load(root: Path, split: str) -> list[Part]:
    lines = [
        _line(record, str(table))
        for table, named in _tables(root)
        for record in _records(table)
        if (record.get("split") or named) == split
    ]
    measured = _measured(root if root.is_dir() else root.parent, split, lines)
    return list(measured.parts) if measured else []


_PROTOCOL = Protocol(
    name="table/plain",
    source="a plain table: every image that the split names is the gallery, reference removed",
    splits=("test", "validation"),
    ks=(1, 5, 10, 50),
    measure=("R@1", "R@10"),
    load=_load,
)
