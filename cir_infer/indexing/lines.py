"""Text files line by line: bounded, whatever bytes they hold, and told apart from UTF-16."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from cir_infer.errors import DatasetError, shown
from cir_infer.foreign import read_json, unique_names
from cir_infer.inputs.opening import opened

__all__ = ["MAX_LINE", "bounded_lines", "jsonl_rows", "opened_text"]

MAX_LINE = 1 << 24
"""Characters of the longest line that is read."""


def opened_text(path: str) -> IO[str]:
    """A text file in UTF-8, with or without a byte order mark.

    Bytes that are no UTF-8 become lone surrogates, so that they cost the row that they are in.

    Raises:
        DatasetError: the file is UTF-16 or no text at all.
    """
    file = opened(path)
    try:
        head = file.read(4096)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or 4 * head.count(0) > len(head) > 0:
        file.close()
        raise DatasetError(
            f"{path}: it is UTF-16 or binary; expected text in UTF-8 (in spreadsheets: 'CSV UTF-8')"
        )
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def bounded_lines(file: IO[str]) -> Iterator[str | None]:
    """The lines with their ends; None for one that is longer than `MAX_LINE`."""
    while line := file.readline(MAX_LINE):
        if len(line) < MAX_LINE:
            yield line
            continue
        while line and not line.endswith(("\n", "\r")):
            line = file.readline(MAX_LINE)
        yield None


def jsonl_rows(path: str) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """The objects of a file with one a line: where each is, and it or the reason why it is none."""
    with opened_text(path) as file:
        for number, line in enumerate(bounded_lines(file), 1):
            place = f"line {number}"
            if line is None:
                yield place, f"longer than {MAX_LINE:,} characters"
                continue
            if not line.strip():
                continue
            try:
                row = read_json(line, object_pairs_hook=unique_names)
            except ValueError as error:
                yield place, f"not JSON that can be read ({shown(error)})"
                continue
            if isinstance(row, dict):
                yield place, row
            else:
                found = shown(row, 60) if row not in (None, True, False) else json.dumps(row)
                yield place, f"expected a JSON object, found {found}"
