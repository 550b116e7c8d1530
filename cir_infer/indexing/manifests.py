"""Manifests: tables that name images and what is known about them.

One column names the image: `image`, `image_path`, `path`, `file` or `filename`, a path relative to
the manifest's folder unless it is absolute. A column `id` names the item, else the image column
does. Every other column is metadata.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cir_infer.errors import CirError, DatasetError, shown
from cir_infer.indexing.items import Broken, Item, Territory, file_item

__all__ = ["ManifestSource"]

IMAGE_COLUMNS = ("image", "image_path", "path", "file", "filename")
_MAX_LINE = 1 << 24
_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+(?:[eE][+-]?\d{1,3})?", re.ASCII)


class ManifestSource:
    """The rows of a .csv, .jsonl or .parquet file.

    CSV knows only text: what reads as a plain whole or decimal number, true or false becomes one
    (`007` stays text), an empty cell is absent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    @property
    def territory(self) -> Territory | None:
        """None: a manifest does not speak for all the files of a folder."""
        return None

    def count(self) -> int | None:
        """How many rows there are, as far as that is quick to know."""
        if self._path.suffix.lower() == ".parquet":
            with _told_as_dataset_error(self._path):
                return int(_parquet(self._path).metadata.num_rows)
        return None

    def items(self) -> Iterator[Item | Broken]:
        """The rows in order.

        Raises:
            DatasetError: the manifest cannot be read, or has no column that names images.
        """
        readers = {".csv": self._csv, ".jsonl": self._jsonl, ".parquet": self._parquet}
        with _told_as_dataset_error(self._path):
            for number, row in readers[self._path.suffix.lower()]():
                yield row if isinstance(row, Broken) else self._item(number, row)

    def _item(self, number: int, row: Mapping[str, Any]) -> Item | Broken:
        place = f"{self._path} row {number}"
        column = next((name for name in IMAGE_COLUMNS if isinstance(row.get(name), str) and row[name]), None)
        if column is None:
            return Broken(str(row.get("id") or place), place, f"{place}: names no image")
        name = row.get("id", row[column])
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if not isinstance(name, str) or not name:
            return Broken(
                str(name), place, f"{place}: its id is {shown(name, 60)}; expected text or a whole number"
            )
        metadata = {
            key: value for key, value in row.items() if key not in ("id", column) and value is not None
        }
        return file_item(name, self._path.parent / row[column], metadata or None)

    def _csv(self) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
        with self._path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(_bounded(file), strict=True)
            self._check_columns(reader.fieldnames or [])
            for number, row in enumerate(reader, 2):
                if None in row or None in row.values():
                    place = f"{self._path} row {number}"
                    yield (
                        number,
                        Broken(place, place, f"{place}: has another number of cells than the header"),
                    )
                    continue
                kept = ("id", *IMAGE_COLUMNS)
                yield (
                    number,
                    {
                        name: cell if name in kept else _typed(cell)
                        for name, cell in row.items()
                        if cell != ""
                    },
                )

    def _jsonl(self) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
        with self._path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(_bounded(file), 1):
                if not line.strip():
                    continue
                place = f"{self._path} line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, Broken(place, place, f"{place}: not JSON ({error})")
                    continue
                if not isinstance(row, dict):
                    yield number, Broken(place, place, f"{place}: expected a JSON object")
                    continue
                yield number, row

    def _parquet(self) -> Iterator[tuple[int, Mapping[str, Any] | Broken]]:
        table = _parquet(self._path)
        self._check_columns(table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield number, row
                number += 1

    def _check_columns(self, names: Any) -> None:
        if not set(names) & set(IMAGE_COLUMNS):
            raise DatasetError(
                f"{self._path}: no column names the images; expected one of {', '.join(IMAGE_COLUMNS)}"
            )


def _typed(cell: str) -> str | int | float | bool:
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if _DECIMAL.fullmatch(cell):
        return float(cell)
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    return cell


def _bounded(file: Any) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        if len(line) >= _MAX_LINE:
            raise ValueError(f"a line of more than {_MAX_LINE:,} characters")
        yield line


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DatasetError(
            f"{path}: reading parquet needs pyarrow; pip install 'cir-infer[parquet]'"
        ) from None
    return parquet.ParquetFile(path)


@contextmanager
def _told_as_dataset_error(path: Path) -> Iterator[None]:
    """Readers answer damage with errors of many types."""
    try:
        yield
    except (CirError, GeneratorExit):
        raise
    except Exception as error:
        raise DatasetError(
            f"{path}: cannot be read as a manifest ({error}); expected a {path.suffix[1:]} file in UTF-8"
        ) from error
