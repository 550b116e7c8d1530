"""Manifests: tables that name images and what is known about them.

One column names the image: `image`, `image_path`, `path`, `file` or `filename`, a path relative to the
manifest's folder unless it is absolute. A column `id` names the item, else the image column does. Every
other column is metadata. A parquet file may hold the images themselves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cir_infer.errors import CirError, DatasetError, shown
from cir_infer.indexing.delimited import csv_rows
from cir_infer.indexing.items import Broken, Item, author_of, file_item, stamp_of
from cir_infer.indexing.lines import jsonl_rows
from cir_infer.indexing.parquet import Cell, parquet_rows, row_count
from cir_infer.indexing.source import Named
from cir_infer.inputs.locations import Location, absolute
from cir_infer.inputs.opening import why

__all__ = [
    "IMAGE_COLUMNS",
    "MANIFEST_ENDINGS",
    "ManifestSource",
    "id_of",
    "image_columns",
    "read_manifest",
]

IMAGE_COLUMNS = ("image", "image_path", "path", "file", "filename")
MANIFEST_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")

_URL = re.compile(r"[a-z][a-z0-9+.-]{1,15}://|(?:https?|ftp|s3|gs|az|hf|data):", re.IGNORECASE)
_URL_COLUMN = re.compile(r"ur[il]s?|.*_ur[il]|.*[a-z]UR[IL]", re.ASCII)
_NO_URLS = "nothing is fetched; download them first (img2dataset does); then name the files"


class ManifestSource(Named):
    """The rows of a .csv, .tsv, .jsonl, .ndjson, .parquet or .pq file.

    A row that makes no sense costs itself.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100
        self._folder = os.path.dirname(self._path)  # noqa: PTH120
        self._ending = path.suffix.lower()
        self._author = author_of(os.path.realpath(path))
        super().__init__(self._path)

    def count(self) -> int | None:
        """How many rows there are, as far as that is quick to know."""
        if self._ending not in (".parquet", ".pq"):
            return None
        try:
            return row_count(self._path)
        except Exception:  # `items` says why
            return None

    def items(self) -> Iterator[Item | Broken]:
        """The rows in order.

        Raises:
            DatasetError: the manifest cannot be read, or has no column that names images.
        """
        self._survey.clear()
        with closing(read_manifest(self._path, IMAGE_COLUMNS, self._check_columns)) as rows:
            for place, row in rows:
                if isinstance(row, str):
                    yield Broken(
                        f"{self._path} {place}", f"{self._path} {place}", f"{self._path} {place}: {row}"
                    )
                else:
                    yield self._item(f"{self._path} {place}", row)

    def _item(self, place: str, row: Mapping[str, Any]) -> Item | Broken:
        def broken(reason: str) -> Broken:
            name = row.get("id")
            return Broken(str(name)[:200] if name else place, place, f"{place}: {reason}")

        column, path = image_columns(row)
        if column is None:
            urls = [name for name, value in row.items() if isinstance(value, str) and _URL.match(value)]
            if urls:
                return broken(f"names an image by its address ({shown(urls[0])}): {_NO_URLS}")
            return broken(f"names no image; expected one of {', '.join(IMAGE_COLUMNS)}")
        image = row[column]
        if isinstance(image, str) and _URL.match(image) and not os.path.lexists(self._in_folder(image)):
            return broken(f"{shown(image)} is an address: {_NO_URLS}")
        explicit = "id" in row and column != "id"
        name = id_of(row, column, path)
        if not isinstance(name, str) or not name:
            reason = f"its id is {shown(name)}; expected text or a whole number"
            return Broken(str(name)[:200], place, f"{place}: {reason}")
        metadata = {
            key: value for key, value in row.items() if key not in ("id", column) and value is not None
        }
        author = self._author if explicit else None
        if isinstance(image, Cell):
            try:
                stamp = stamp_of(image.size, image.mtime_ns, metadata)
            except (ValueError, TypeError, RecursionError) as error:
                return broken(f"metadata cannot be stored: {shown(error)}")
            location = Location(self._path, image.row, None, column)
            return Item(name, location, f"{stamp}-{image.row}", metadata or None, None, author)
        return file_item(name, absolute(self._in_folder(image)), metadata or None, author=author)

    def _in_folder(self, name: str) -> str:
        return os.path.join(self._folder, name)  # noqa: PTH118

    def _check_columns(self, names: Collection[str]) -> None:
        """Refuse a table without a column for images, and say what there is instead."""
        if "" in names:  # the index of a data frame, or a delimiter behind the last name
            self._survey.leave_out("columns without a name")
        if set(names) & set(IMAGE_COLUMNS):
            return
        found = ", ".join(shown(name, 40) for name in list(names)[:20])
        more = f" and {len(names) - 20:,} more" if len(names) > 20 else ""
        addresses = [name for name in names if _URL_COLUMN.fullmatch(name)]
        remedy = f"rename the one that names the images to one of {', '.join(IMAGE_COLUMNS)}"
        if addresses:
            remedy = f"{shown(addresses[0])} seems to hold addresses: {_NO_URLS} in a column `image`"
        raise DatasetError(
            f"{self._path}: no column names the images; found {found or 'none'}{more}; {remedy}"
        )


def image_columns(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The column of a row's image, and that of its path; the image itself may stand in another one."""
    cell = next((name for name in row if isinstance(row[name], Cell)), None)
    path = next((name for name in IMAGE_COLUMNS if isinstance(row.get(name), str) and row[name]), None)
    return cell or path, path


def id_of(row: Mapping[str, Any], column: str | None, path: str | None) -> Any:
    """What a row calls its item: its id, else its image (see `image_columns`); no text where that is none."""
    name = row["id"] if "id" in row and column != "id" else None if column is None else row[column]
    if isinstance(name, Cell):  # a column of paths beside one of bytes says what they are called
        name = name.name if name.is_named or path is None else row[path]
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else name


def read_manifest(
    path: str, columns: Sequence[str], check: Callable[[Collection[str]], None]
) -> Generator[tuple[str, Mapping[str, Any] | str]]:
    """The rows of a manifest: where each is, and its values by column or the reason why it is broken.

    Args:
        path: of the file, whose ending says what it is.
        columns: of which a table of text has one.
        check: is given the names of its columns, and raises if they do not serve.

    Raises:
        DatasetError: it cannot be read, and see `check`.
    """
    with _told_as_dataset_error(path):
        match Path(path).suffix.lower():
            case ".parquet" | ".pq":
                yield from parquet_rows(path, check)
            case ".jsonl" | ".ndjson":
                yield from jsonl_rows(path)
            case _:
                yield from csv_rows(path, columns, check)


@contextmanager
def _told_as_dataset_error(path: str) -> Iterator[None]:
    """Readers answer damage with errors of many types."""
    try:
        yield
    except (CirError, GeneratorExit):
        raise
    except Exception as error:
        ending = os.path.splitext(path)[1][1:]  # noqa: PTH122
        raise DatasetError(
            f"{path}: cannot be read as a manifest ({why(error)}); expected a {ending} file"
            f"{'' if ending.lower() in ('parquet', 'pq') else ' in UTF-8'}"
        ) from error
