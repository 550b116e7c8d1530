"""A pipe in the place of a file is refused and not waited for, and a text has a size, whoever names one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cir_bench.latency.workload import _lines
from cir_bench.report.tables import read_page
from cir_bench.results import read_result
from cir_eval.datasets.files import json_object, lines
from cir_eval.datasets.generated import lines_of
from cir_eval.datasets.icir import read_entries
from cir_export.training.configuration import DataSettings, read_config
from cir_export.training.sources import open_source
from cir_export.training.sources.table import _records
from cir_infer.errors import CirError, DatasetError
from cir_infer.foreign import has_file, lines_in, no_file, opened_file, text_of
from cir_infer.gallery.copies.clip_retrieval import _digest, read_folder
from cir_infer.gallery.copies.transfer import _is_export
from cir_infer.inputs.opening import opened
from cir_infer.serving.keys import Keys


@pytest.fixture
def nobody_waits() -> Iterator[None]:
    """A test that waits for the writer of a pipe ends all the same."""

    def stop(*_: object) -> None:
        raise AssertionError("it waits for somebody who writes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


READERS: dict[str, Callable[[Path], Any]] = {
    "opened_file": opened_file,
    "text_of": text_of,
    "images": opened,
    "keys": Keys.read,
    "configuration": read_config,
    "results": read_result,
    "texts": _lines,
    "page": read_page,
    "lines of a data set": lambda path: list(lines(path, "captions")),
    "table of a data set": lambda path: json_object(path, "captions"),
    "lines of JSON": lambda path: list(lines_of(path, dict)),
    "entries": lambda path: read_entries(path.parent, path.name),
    "triplets": lambda path: list(_records(path)),
    "digest": _digest,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_is_refused_by_whatever_reads(tmp_path: Path, reader: str, nobody_waits: None) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with pytest.raises((CirError, OSError), match="not a regular file"):
        READERS[reader](pipe)


def test_a_pipe_among_the_parts_of_a_folder_of_rows(tmp_path: Path, nobody_waits: None) -> None:
    os.mkfifo(tmp_path / "cir-gallery.json")
    assert not _is_export(tmp_path)
    with pytest.raises(CirError):
        read_folder(tmp_path)


def test_a_line_ends_at_the_end_of_a_line_alone() -> None:
    assert lines_in("one\x85\u2028a\x0b\x0c\r\n\ntwo\rthree") == [
        "one\x85\u2028a\x0b\x0c",
        "",
        "two",
        "three",
    ]
    assert lines_in("") == [] and lines_in("a\n") == ["a"] and lines_in("\n") == [""]


def test_a_text_has_a_size_a_mark_and_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    assert text_of(path) == "one\ntwo\nthree\n" == text_of(path, most=path.stat().st_size)
    with pytest.raises(OSError, match="more than 17 bytes"):
        text_of(path, most=path.stat().st_size - 1)
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        text_of(path)


def test_what_is_no_file_is_told_by_what_it_is(tmp_path: Path) -> None:
    file, pipe, folder, link, loop = (tmp_path / name for name in ("file", "pipe", "folder", "link", "loop"))
    file.write_text("")
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to("nowhere")
    loop.symlink_to(loop)
    assert has_file(file, DatasetError) and not has_file(tmp_path / "none", DatasetError)
    assert not has_file("a\0b", DatasetError) and no_file("a\0b") == "does not exist"
    for path, said in (
        (pipe, "is not a file"),
        (folder, "is not a file"),
        (link, "is a link to what is not there"),
        (loop, "is a link to what is not there"),
    ):
        assert no_file(path) == said
        with pytest.raises(DatasetError, match=f"{path} {said}"):
            has_file(path, DatasetError)


@pytest.mark.parametrize("kind", ["scenes", "emoji"])
def test_a_pipe_where_a_data_set_is_described_is_not_a_data_set_that_is_cut_short(
    tmp_path: Path, kind: str, nobody_waits: None
) -> None:
    os.mkfifo(tmp_path / f"{kind}.json")
    with pytest.raises(DatasetError, match=rf"{kind}\.json is not a file"):
        open_source(DataSettings(str(tmp_path), kind))
