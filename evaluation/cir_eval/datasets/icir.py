"""i-CIR (Psomas et al., NeurIPS 2025), as published: one line an image.

database_files.csv, query_files.csv       path,text,instance      without a header
database/, query/                         the images
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from cir_eval.datasets.files import existing
from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import opened_file

__all__ = ["Entry", "read_entries"]


class Entry(NamedTuple):
    """One image: its path below the root, the text that it answers or asks, the instance that it shows."""

    path: str
    text: str
    instance: str


def read_entries(root: Path, name: str) -> list[Entry]:
    """The lines of `database_files.csv` or `query_files.csv`.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = existing(root / name, "a table of path, text and instance")
    try:
        with io.TextIOWrapper(opened_file(path), "utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read ({shown(error)}); download it again") from error
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 3 or not row[0]), None)
    if wrong is not None or not rows:
        raise DatasetError(f"{path}, line {wrong or 1}: expected path, text and instance; download it again")
    return [Entry(row[0], row[1], row[2]) for row in rows]
