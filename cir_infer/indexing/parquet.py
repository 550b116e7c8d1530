"""Parquet manifests: a row group that cannot be read costs itself; cells may hold the images themselves.

Hugging Face's data sets keep an image as a struct of `bytes` and `path`, others as a column of bytes. Such
cells are read where they are decoded, by column and row, and do not pass through the process that indexes.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from cir_infer.errors import CirError, DatasetError, ImageError, shown
from cir_infer.indexing.locations import Location

__all__ = ["BINARY_COLUMNS", "Cell", "parquet_rows", "read_cell", "row_count"]

BINARY_COLUMNS = ("image", "image_bytes", "bytes", "img", "jpg", "jpeg", "png", "webp")
"""A column of these names and of a binary type, or the struct that Hugging Face writes, holds images."""

_BATCH = 1024
_CELLS = 32
_CACHE = threading.local()


class Cell(NamedTuple):
    """An image in a cell of a parquet file.

    Attributes:
        row: from 0.
        name: what the image is called where the row has no id.
        size: of the parquet file, in bytes.
        mtime_ns: of the parquet file.
    """

    row: int
    name: str
    size: int
    mtime_ns: int


def row_count(path: str) -> int:
    """How many rows a file has."""
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def parquet_rows(
    path: str, check: Callable[[Collection[str]], None]
) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """The rows of a file: where each is, and its values by column or the reason why it is broken.

    Args:
        path: of the file.
        check: is given the names of the columns where none holds images, and raises if they do not serve.

    Raises:
        DatasetError: pyarrow is missing, or see `check`. Others where the file is damaged.
    """
    status = os.stat(path)  # noqa: PTH116
    with _opened(path) as file:
        images, has_path = _image_column(file.schema_arrow)
        names = file.schema_arrow.names
        if images is None:
            check(names)
        columns = [f"{name}.path" if name == images else name for name in names if name != images or has_path]
        stem = os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122
        start = 0
        for group in range(file.metadata.num_row_groups):
            size = max(0, file.metadata.row_group(group).num_rows)
            number = start
            try:
                for row in _group(file, group, columns, size):
                    if isinstance(row, dict) and images is not None:
                        held = row.get(images)
                        told = held.get("path") if isinstance(held, Mapping) else None
                        name = told if isinstance(told, str) and told else f"{stem}/{number}"
                        row = {**row, images: Cell(number, name, status.st_size, status.st_mtime_ns)}
                    yield f"row {number + 1}", row
                    number += 1
            except CirError:
                raise
            except Exception as error:  # pyarrow answers damage with errors of many types
                yield (
                    f"rows {number + 1:,} to {start + size:,}",
                    f"cannot be read ({shown(error)}); the rest of a row group is left out",
                )
            start += size


def _group(file: Any, group: int, columns: list[str], size: int) -> Iterator[dict[str, Any] | str]:
    if not columns:
        yield from ({} for _ in range(size))
        return
    for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=columns):
        try:
            yield from batch.to_pylist()
        except Exception:  # a value that Python has no place for, such as a date of the year 40,000
            for at in range(batch.num_rows):
                try:
                    yield batch.slice(at, 1).to_pylist()[0]
                except Exception as error:
                    yield f"holds a value that cannot be read ({shown(error)})"


def read_cell(path: str, column: str, row: int) -> bytes:
    """The image in a cell.

    Neighbouring cells are read together: the file is kept open where the last call of this thread left it.

    Raises:
        ImageError: the file is missing or damaged, or there is no such cell.
    """
    what = f"{path}#{column}[{row}]"
    try:
        status = os.stat(path)  # noqa: PTH116
        of = (path, status.st_size, status.st_mtime_ns, column)
        reader: _Cells | None = getattr(_CACHE, "reader", None)
        if reader is None or reader.of != of:
            if reader is not None:
                reader.close()
            reader = _CACHE.reader = _Cells(of)
        value = reader.cell(row)
    except CirError:
        raise
    except Exception as error:
        _CACHE.reader = None
        raise ImageError(f"{what}: cannot be read ({shown(error)})") from error
    if isinstance(value, Mapping):
        told = value.get("path")
        if value.get("bytes") is None and isinstance(told, str) and told:
            return Location(os.path.join(os.path.dirname(path), told)).read()  # noqa: PTH118, PTH120
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise ImageError(f"{what}: there is no image in this cell")
    return value


class _Cells:
    """A column of a file, read front to back; going back begins its row group again."""

    def __init__(self, of: tuple[str, int, int, str]) -> None:
        self.of = of
        self._file = _opened(of[0])
        if of[3] not in self._file.schema_arrow.names:
            raise ImageError(f"{of[0]}: has no column {shown(of[3])} any more; index it again")
        counts = [
            self._file.metadata.row_group(n).num_rows for n in range(self._file.metadata.num_row_groups)
        ]
        self._starts = [0, *itertools.accumulate(counts)]
        self._batches: Iterator[Any] = iter(())
        self._held: list[Any] = []
        self._first = self._group = -1

    def cell(self, row: int) -> Any:
        group = bisect.bisect_right(self._starts, row) - 1
        if row >= self._starts[-1]:
            raise ImageError(f"{self.of[0]}: has {self._starts[-1]:,} rows, there is no row {row + 1:,}")
        if group != self._group or row < self._first:
            self._batches = self._file.iter_batches(
                batch_size=_CELLS, row_groups=[group], columns=[self.of[3]]
            )
            self._group, self._first, self._held = group, self._starts[group], []
        while row >= self._first + len(self._held):
            self._first += len(self._held)
            self._held = next(self._batches).column(0).to_pylist()
        return self._held[row - self._first]

    def close(self) -> None:
        self._file.close()


def _image_column(schema: Any) -> tuple[str | None, bool]:
    """The column whose cells hold images, None where paths name them, and whether cells have a path too."""
    import pyarrow.types as types

    def is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    for at, name in enumerate(schema.names):
        kind = schema.field(at).type
        if name in BINARY_COLUMNS and is_binary(kind):
            return str(name), False
        if types.is_struct(kind):
            fields = {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)}
            if "bytes" in fields and is_binary(fields["bytes"]):
                return str(name), "path" in fields
    return None, False


def _opened(path: str) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DatasetError(
            f"{path}: reading parquet needs pyarrow; pip install 'cir-infer[parquet]'"
        ) from None
    return parquet.ParquetFile(path)
