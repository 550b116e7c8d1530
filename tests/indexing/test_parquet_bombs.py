"""Parquet files whose cells take far more than what is stored of them."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from cir_infer.indexing.items import Broken
from cir_infer.indexing.sources import open_source
from cir_infer.inputs import cells


def test_a_value_in_every_row_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    note = "x" * 300_000
    table = pyarrow.table({"image": [f"{n}.png" for n in range(2000)], "note": [note] * 2000})
    path = tmp_path / "x.parquet"
    parquet.write_table(table, path, compression="none", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 2_000_000
    file = cells.opened_parquet(str(path))
    assert cells.rows_at_once(file, 0, ["image"], 1024) > 1000
    assert 1 <= cells.rows_at_once(file, 0, ["image", "note"], 1024) < 300
    file.close()


def test_a_column_that_swells_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "_SMALL_CHUNK", 1 << 20)
    table = pyarrow.table({"image": ["a.png", "b.png"], "note": ["x" * 4_000_000, "y" * 4_000_000]})
    path = tmp_path / "x.parquet"
    parquet.write_table(table, path, compression="zstd")
    (broken,) = open_source(str(path)).items()
    assert isinstance(broken, Broken)
    assert "bytes of" in broken.reason
