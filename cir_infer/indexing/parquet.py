"""Parquet manifests: a row group that cannot be read costs itself; cells may hold the images themselves.

Hugging Face's data sets keep an image as a struct of `bytes` and `path`, others as a column of bytes. Such
cells are read where they are decoded, by column and row, and do not pass through the process that indexes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from cir_infer.errors import CirError, shown
from cir_infer.inputs.cells import opened_parquet, rows_at_once

__all__ = ["BINARY_COLUMNS", "Cell", "parquet_rows", "row_count"]

BINARY_COLUMNS = ("image", "image_bytes", "bytes", "img", "jpg", "jpeg", "png", "webp")
"""A column of these names and of a binary type, or the struct that Hugging Face writes, holds images."""

_BATCH = 1024


class Cell(NamedTuple):
    """An image in a cell of a parquet file.

    Attributes:
        row: from 0.
        name: what the image is called where the row has no id.
        is_named: whether the cell itself says so; else it is the name of the table and the row.
        size: of the parquet file, in bytes.
        mtime_ns: of the parquet file.
    """

    row: int
    name: str
    is_named: bool
    size: int
    mtime_ns: int


def row_count(path: str) -> int:
    """How many rows a file has."""
    with opened_parquet(path) as file:
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
    with opened_parquet(path) as file:
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
                        named = isinstance(told, str) and bool(told)
                        name = str(told) if named else f"{stem}/{number}"
                        row = {**row, images: Cell(number, name, named, status.st_size, status.st_mtime_ns)}
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
    rows = rows_at_once(file, group, columns, _BATCH)
    for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns):
        try:
            yield from batch.to_pylist()
        except Exception:  # a value that Python has no place for, such as a date of the year 40,000
            for at in range(batch.num_rows):
                try:
                    yield batch.slice(at, 1).to_pylist()[0]
                except Exception as error:
                    yield f"holds a value that cannot be read ({shown(error)})"


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
