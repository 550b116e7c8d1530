"""CSV and its relatives: a row that cannot be read costs itself, not those behind it."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from cir_infer.errors import DatasetError, shown
from cir_infer.indexing.lines import MAX_LINE, bounded_lines, opened_text

__all__ = ["csv_rows"]

_DELIMITERS = ",;\t|"
_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)
_DECIMAL = re.compile(r"-?(?:0|[1-9]\d*)\.\d+(?:[eE][+-]?\d{1,3})?", re.ASCII)
_SEPARATOR = re.compile(r"sep=(.)\r?\n?")


def csv_rows(
    path: str, image_columns: Sequence[str], check: Callable[[Collection[str]], None]
) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """The rows of a CSV file: where each is, and its cells by column or the reason why it is broken.

    The delimiter (comma, semicolon, tab or `|`) is the one under which the header names the images. CSV knows
    only text: what reads as a plain whole or decimal number, true or false becomes one (`007` stays text), an
    empty cell is absent.

    Args:
        path: of the file.
        image_columns: the names that a column of images may have.
        check: is given the header, and raises if it does not serve.

    Raises:
        DatasetError: no header, or one that `check` refuses.
    """
    with opened_text(path) as file:
        lines = _Lines(bounded_lines(file))
        delimiter, header = _header(path, lines, image_columns)
        check(header)
        twice = {name for name, count in Counter(header).items() if name and count > 1}
        if twice:
            raise DatasetError(f"{path}: the column {shown(min(twice))} comes twice; name each differently")
        kept = ("id", *image_columns)
        for number, cells in enumerate(_records(lines, delimiter), 2):
            place = f"row {number}"
            if isinstance(cells, str):
                yield place, cells
            elif not cells:
                continue  # a blank line
            elif len(cells) != len(header):
                yield place, f"has {len(cells)} cells, the header {len(header)}"
            else:
                yield (
                    place,
                    {
                        name: cell if name in kept else _typed(cell)
                        for name, cell in zip(header, cells, strict=True)
                        if cell and name
                    },
                )


def _header(path: str, lines: _Lines, image_columns: Sequence[str]) -> tuple[str, list[str]]:
    first = next(lines, None)
    declared = _SEPARATOR.fullmatch(first) if first else None
    if declared is None and first is not None:
        lines.push_back([first])
    best: tuple[str, list[str]] | None = None
    for delimiter in declared[1] if declared else _DELIMITERS:
        cells = next(_records(lines, delimiter), None)
        if cells is None:
            break
        if isinstance(cells, str):
            lines.push_back(lines.pulled)
            continue
        if set(cells) & set(image_columns):
            return delimiter, cells
        if best is None or len(cells) > len(best[1]):
            best = delimiter, cells
        lines.push_back(lines.pulled)
    if best is None:
        raise DatasetError(f"{path}: has no header; expected a first line with the names of the columns")
    return best


class _Lines:
    """Lines that can be given back.

    Attributes:
        pulled: what was handed out since this was last emptied.
    """

    def __init__(self, lines: Iterator[str | None]) -> None:
        self._lines = lines
        self._returned: list[str | None] = []
        self.pulled: list[str | None] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._returned.pop() if self._returned else next(self._lines)
        self.pulled.append(line)
        if line is None:
            raise csv.Error(f"longer than {MAX_LINE:,} characters")
        return line

    def push_back(self, lines: Sequence[str | None]) -> None:
        """Hand these out again next."""
        self._returned += reversed(lines)


def _records(lines: _Lines, delimiter: str) -> Iterator[list[str] | str]:
    """The records: their cells, none for a blank line, or what is wrong."""
    while True:
        lines.pulled = []
        reader = csv.reader(lines, strict=True, delimiter=delimiter)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed takes in whole lines; only the first of them is at fault.
            lines.push_back(lines.pulled[1:])
            del lines.pulled[1:]
            yield _reason(error)
            continue
        yield cells


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return f"a cell of more than {csv.field_size_limit():,} characters, or a quote that is never closed"
    if "unexpected end of data" in text:
        return "a quote that is never closed"
    return text


def _typed(cell: str) -> str | int | float | bool:
    if _WHOLE.fullmatch(cell):
        return int(cell)
    if _DECIMAL.fullmatch(cell):
        return float(cell)
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    return cell
