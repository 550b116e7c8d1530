"""Manifests as spreadsheets, data frames and data sets write them, and with rows that make no sense."""

from __future__ import annotations

import csv
import gc
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir_infer.errors import DatasetError
from cir_infer.indexing.delimited import csv_rows
from cir_infer.indexing.items import Broken, Item
from cir_infer.indexing.lines import MAX_LINE
from cir_infer.indexing.sources import open_source
from cir_infer.inputs.locations import Location
from tests.indexing.support import folder_of, png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder_of(tmp_path / "f", 2)
    return tmp_path


def read(path: Path) -> tuple[dict[str, Item], list[Broken]]:
    entries = list(open_source(str(path)).items())
    items = {entry.id: entry for entry in entries if isinstance(entry, Item)}
    return items, [entry for entry in entries if isinstance(entry, Broken)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_delimiters_marks_and_line_ends(folder: Path, delimiter: str, mark: str, ending: str) -> None:
    rows = [["id", "image", "note, with; all"], ["a", "f/0.png", "1,5"], ["b", "f/sub/1.png", "x;y"]]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=ending).writerows(rows)
    (folder / "m.csv").write_text(mark + text.getvalue(), encoding="utf-8", newline="")
    items, broken = read(folder / "m.csv")
    assert sorted(items) == ["a", "b"] and broken == []
    assert items["a"].metadata == {"note, with; all": "1,5"}


def test_a_declared_delimiter_and_a_data_frames_index(folder: Path) -> None:
    (folder / "m.csv").write_text("sep=;\n;image;price\n0;f/0.png;1.5\n\n1;f/sub/1.png;2\n")
    source = open_source(str(folder / "m.csv"))
    entries = list(source.items())
    assert [(e.id, e.metadata) for e in entries if isinstance(e, Item)] == [
        ("f/0.png", {"price": 1.5}),
        ("f/sub/1.png", {"price": 2}),
    ]
    assert source.survey.left_out == {"columns without a name": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('x,"never closed', "never closed"),
        ('x,"f/0.png"odd', "expected after"),
        ("x,f/0.png,more", "3 cells, the header 2"),
        ("x", "1 cells"),
        ("x," + "y" * 200_000, "more than 131,072 characters"),
        ("x,f/gone.png", "No such file"),
        ("x,", "names no image"),
        ("x,https://example.org/a.jpg", "nothing is fetched"),
        ("x,f/\0.png", ""),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_bad_row_costs_itself(folder: Path, row: str, reason: str, at: int) -> None:
    rows = ["a,f/0.png", "b,f/sub/1.png"]
    rows.insert(at, row)
    filler = [f"n{n},f/0.png" for n in range(300)]
    (folder / "m.csv").write_text("\n".join(["id,image", *filler, *rows, *filler[:0]]) + "\n")
    items, broken = read(folder / "m.csv")
    assert {"a", "b"} <= set(items) and len(items) == 302
    assert len(broken) == 1 and reason in broken[0].reason
    assert broken[0].id == "x" or broken[0].id.endswith(f"row {302 + at}")
    assert len(broken[0].reason) < 500


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=6), st.sampled_from(",;\t|"))
def test_what_a_writer_writes_is_read_back(
    tmp_path_factory: Any, rows: list[list[str]], delimiter: str
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([["image", "note"], *rows])
    path = tmp_path_factory.mktemp("t") / "m.csv"
    try:
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    except UnicodeEncodeError:
        return
    if any("\0" in cell for row in rows for cell in row):
        return  # told as another kind of file
    found = [row for _, row in csv_rows(str(path), ["image"], lambda names: None) if row]
    expected = [{k: v for k, v in zip(("image", "note"), row, strict=True) if v} for row in rows if any(row)]
    assert [{k: v for k, v in row.items() if k == "image"} for row in found if isinstance(row, dict)] == [
        {k: v for k, v in row.items() if k == "image"} for row in expected
    ]


@given(st.text(alphabet='a,"\n\r;x', max_size=200))
def test_any_text_gives_rows_or_reasons(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.mktemp("t") / "m.csv"
    path.write_text("image,b\n" + text, newline="")
    rows = list(csv_rows(str(path), ["image"], lambda names: None))
    assert len(rows) <= text.count("\n") + text.count("\r") + 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_other_encodings_are_told(folder: Path, encoding: str, name: str) -> None:
    (folder / name).write_text("id,image\na,f/0.png\n", encoding=encoding)
    with pytest.raises(DatasetError, match="UTF-16"):
        read(folder / name)


def test_bytes_that_are_no_utf8_cost_their_row(folder: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    odd.mkdir()
    (odd / "x.png").write_bytes(png(1))
    (folder / "m.csv").write_bytes(b"id,image,note\na,f/0.png,\nb,caf\xe9/x.png,\nc,f/0.png,caf\xe9\n")
    from cir_infer.indexing.items import unfit

    items, broken = read(folder / "m.csv")
    assert broken == [] and items["b"].location.read() == png(1)
    assert unfit(items["a"]) is None
    for name in ("b", "c"):
        problem = unfit(items[name])
        assert problem is not None and ("UTF-8" in problem.reason or "Unicode" in problem.reason)


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.parquet"])
def test_a_refusal_shows_the_columns_and_what_to_do(folder: Path, name: str) -> None:
    def write(*columns: str) -> Path:
        if name.endswith("parquet"):
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.table({column: ["x"] for column in columns}), folder / name)
        else:
            (folder / name).write_text("\t".join(columns) + "\n" + "\t".join("x" for _ in columns) + "\n")
        return folder / name

    with pytest.raises(DatasetError, match="found 'sku', 'Image', 'price'; rename") as caught:
        read(write("sku", "Image", "price"))
    assert "image_path" in str(caught.value)
    with pytest.raises(DatasetError, match="'image_url' seems to hold addresses: nothing is fetched"):
        read(write("id", "image_url"))
    with pytest.raises(DatasetError, match="and 80 more") as caught:
        read(write(*(f"c{n}" for n in range(100))))
    assert len(str(caught.value)) < 1500


def test_a_header_that_names_a_column_twice_is_refused(folder: Path) -> None:
    (folder / "m.csv").write_text("image,a,a\nf/0.png,1,2\n")
    with pytest.raises(DatasetError, match="comes twice"):
        read(folder / "m.csv")
    (folder / "m.csv").write_text("")
    with pytest.raises(DatasetError, match="no header"):
        read(folder / "m.csv")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ('{"image": "f/0.png", "n": {"price": 1, "price": 2}}', "'price' occurs twice"),
        ('{"image": "f/0.png", "image": "f/1.png"}', "'image' occurs twice"),
        ("[" * 100_000, "nested too deep"),
        ('{"image": "f/0.png", "x": 1' + "0" * 5000 + "}", ""),
        ('["f/0.png"]', "expected a JSON object"),
        ('{"image": 5}', "names no image"),
        ('{"id": [1], "image": "f/0.png"}', "its id is"),
        ('{"image": "f/\\u0000.png"}', ""),
        ('{"image": "\\ud800.png"}', ""),
        ('{"image": "' + "x" * 5000 + '"}', ""),
        ('{"url": "https://example.org/a.jpg"}', "nothing is fetched"),
        ("null", "found null"),
        ("true", "found true"),
    ],
)
def test_a_bad_line_costs_itself(folder: Path, line: str, reason: str) -> None:
    good = [json.dumps({"id": n, "image": "f/0.png"}) for n in range(3)]
    (folder / "m.ndjson").write_text("\n".join([good[0], line, *good[1:]]))
    items, broken = read(folder / "m.ndjson")
    assert {"0", "1", "2"} <= set(items)
    assert len(broken) == 1 and reason in broken[0].reason and len(broken[0].reason) < 6000


@pytest.mark.parametrize("odd", ["x" * 60_000, "é" * 30_000])
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_a_path_of_any_length_is_told_shortly(folder: Path, odd: str, name: str) -> None:
    lines = {"m.csv": f"image,n\n{odd},1\n", "m.jsonl": json.dumps({"image": odd}) + "\n"}
    (folder / name).write_text(lines[name])
    items, broken = read(folder / name)
    assert not items and len(broken) == 1
    assert len(broken[0].reason) < 6000 and "cannot be read" in broken[0].reason[-200:]
    assert len(broken[0].id) < 6000 and len(broken[0].source) < 6000


def test_a_line_without_end_costs_itself(folder: Path) -> None:
    with (folder / "m.jsonl").open("w") as file:
        file.write(
            '{"id": "a", "image": "f/0.png"}\n"' + "x" * (2 * MAX_LINE) + '"\n{"id": "b", "image": "f/0.png"}'
        )
    items, broken = read(folder / "m.jsonl")
    assert sorted(items) == ["a", "b"] and ["longer than" in entry.reason for entry in broken] == [True]


def test_a_descriptor_is_not_lost_for_each_odd_line(folder: Path) -> None:
    rows = [
        {"id": n, "image": name} for n, name in enumerate(["f", "/dev/null", "f/gone.png", "f/0.png/x"] * 50)
    ]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gc.collect()
    before = len(list(Path("/dev/fd").iterdir()))
    for item in open_source(str(folder / "m.jsonl")).items():
        if isinstance(item, Item):
            with pytest.raises(Exception, match=r"cannot be read|not a regular file"):
                item.location.read()
    assert len(list(Path("/dev/fd").iterdir())) <= before


# ---- parquet


def parquet_of(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_images_in_cells_are_read_as_hugging_face_writes_them(tmp_path: Path) -> None:
    cells = [{"bytes": png(n), "path": f"{n}.png" if n % 2 else None} for n in range(100)]
    path = parquet_of(
        tmp_path / "train.parquet", {"image": cells, "label": list(range(100))}, row_group_size=40
    )
    items, broken = read(path)
    assert broken == [] and len(items) == 100
    assert set(items) == {f"{n}.png" if n % 2 else f"train/{n}" for n in range(100)}
    for number in (0, 1, 45, 99, 2):
        item = items[f"{number}.png" if number % 2 else f"train/{number}"]
        assert item.metadata == {"label": number} and item.location.read() == png(number)
        assert Location.parse(str(item.location)) == item.location
    assert open_source(str(path)).count() == 100


@pytest.mark.parametrize("column", ["image", "jpg", "image_bytes"])
def test_a_column_of_bytes_holds_images(tmp_path: Path, column: str) -> None:
    path = parquet_of(tmp_path / "x.pq", {column: [png(1), None, b""], "id": ["a", "b", "c"]})
    items, _ = read(path)
    assert items["a"].location.read() == png(1) and items["a"].metadata is None
    for name in "bc":
        with pytest.raises(Exception, match="no image in this cell"):
            items[name].location.read()


@pytest.mark.parametrize("column", ["path", "filename"])
def test_a_column_of_paths_names_the_images_beside_it(tmp_path: Path, column: str) -> None:
    path = parquet_of(tmp_path / "x.pq", {"image": [png(1), png(2)], column: ["f/1.png", None]})
    items, _ = read(path)
    assert items["f/1.png"].location.read() == png(1) and items["x/1"].location.read() == png(2)
    path = parquet_of(tmp_path / "y.pq", {"bytes": [png(1)], column: ["f/1.png"], "id": ["a"]})
    assert read(path)[0].keys() == {"a"}


def test_a_cell_that_is_gone_says_so(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "x.parquet", {"image": [png(1)], "id": ["a"]})
    for location in (
        Location(str(path), 7, None, "image"),
        Location(str(path), 0, None, "picture"),
        Location(str(tmp_path / "gone.parquet"), 0, None, "image"),
    ):
        with pytest.raises(Exception, match=r"rows, there is no row|any more|cannot be read"):
            location.read()


def test_a_damaged_row_group_costs_itself(folder: Path) -> None:
    path = parquet_of(
        folder / "x.parquet",
        {"id": [str(n) for n in range(300)], "image": ["f/0.png"] * 300},
        row_group_size=100,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    from pyarrow import parquet

    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 16] = b"\xff" * 16
    path.write_bytes(data)
    items, broken = read(path)
    assert set(items) == {str(n) for n in (*range(100), *range(200, 300))}
    assert len(broken) == 1 and "rows 101 to 200" in broken[0].reason


def test_a_value_that_python_cannot_hold_costs_its_row(folder: Path) -> None:
    import pyarrow

    days = pyarrow.array([0, 1 << 30, 2], pyarrow.int32()).cast(pyarrow.date32())
    path = parquet_of(folder / "x.parquet", {"id": ["a", "b", "c"], "image": ["f/0.png"] * 3, "day": days})
    items, broken = read(path)
    assert sorted(items) == ["a", "c"] and len(broken) == 1 and "row 2" in broken[0].reason
