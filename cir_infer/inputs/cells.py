"""Images in the cells of parquet files."""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cir_infer.errors import CirError, DatasetError, ImageError, shown
from cir_infer.extras import require
from cir_infer.inputs.opening import opened

__all__ = ["opened_parquet", "read_cell", "rows_at_once"]

_CELLS = 32
_SWOLLEN = 200
_SMALL_CHUNK = 64 << 20
"""A column of a row group that is larger than this, and so many times as large as what is stored of it, is
refused; and so many bytes of its cells are read at once."""

_CACHE = threading.local()


def read_cell(path: str, column: str, row: int) -> bytes | str:
    """The image in a cell, or the path of the file that the cell names instead.

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
            return os.path.join(os.path.dirname(path), told)  # noqa: PTH118, PTH120
        value = value.get("bytes")
    if not isinstance(value, bytes) or not value:
        raise ImageError(f"{what}: there is no image in this cell")
    return value


class _Cells:
    """A column of a file, read front to back; going back begins its row group again."""

    def __init__(self, of: tuple[str, int, int, str]) -> None:
        self.of = of
        self._file = opened_parquet(of[0])
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
                batch_size=rows_at_once(self._file, group, [self.of[3]], _CELLS),
                row_groups=[group],
                columns=[self.of[3]],
            )
            self._group, self._first, self._held = group, self._starts[group], []
        while row >= self._first + len(self._held):
            self._first += len(self._held)
            self._held = next(self._batches).column(0).to_pylist()
        return self._held[row - self._first]

    def close(self) -> None:
        self._file.close()


def rows_at_once(file: Any, group: int, columns: Collection[str], most: int) -> int:
    """How many rows of a row group to read at once, so that they take some 64 MiB however they are stored.

    A column that is stored once in a dictionary may stand in every row: of a small file, a thousand rows can
    take gigabytes.

    Args:
        file: open.
        group: of rows.
        columns: that are read: names, also of parts (`image.path`).
        most: rows, where nothing speaks against it.

    Raises:
        ValueError: a column is a decompression bomb.
    """
    rows = most
    described = file.metadata.row_group(group)
    for number in range(described.num_columns):
        chunk = described.column(number)
        name = chunk.path_in_schema
        if not any(name == column or name.startswith(f"{column}.") for column in columns):
            continue
        stored, whole = chunk.total_compressed_size, chunk.total_uncompressed_size
        if whole > _SMALL_CHUNK and whole > _SWOLLEN * stored:
            raise ValueError(
                f"the column {shown(name, 60)} takes {whole:,} bytes of {stored:,} that are stored; at most "
                f"{_SWOLLEN} times as many are read"
            )
        if chunk.has_dictionary_page and chunk.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
            rows = min(rows, max(1, _SMALL_CHUNK // max(whole, 1)))
    return rows


def opened_parquet(path: str) -> Any:
    """A parquet file, open.

    Raises:
        DatasetError: pyarrow is missing. Others where the file is damaged.
    """
    require(f"{path}: reading parquet", "pyarrow", error=DatasetError)
    from pyarrow import parquet

    opened(path).close()  # a pipe would wait for its writer
    return parquet.ParquetFile(path)
