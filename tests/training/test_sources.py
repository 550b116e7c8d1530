"""Training data: tables of every kind, pictures from memory or from disk, and what is wrong with either."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.data import Batch
from cir_export.training.loading import load_data
from cir_export.training.sources import open_source
from cir_export.training.sources.contract import FixedTriplets, Triplet
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import CirError, DatasetError, ImageError, TrainingError
from tests.training.test_data_sets import MODEL, colours, configuration, fashioniq, shoes

ROWS = [
    {"reference": "0.png", "target": "1.png", "text": "is red"},
    {"reference": "1.png", "target": "2.png", "text": 'is blue, with "dots"', "text2": "and é"},
    {"reference": "0.png", "target": "2.png", "text": "is green", "split": "validation"},
    {"reference": "0.png", "target": "1.png", "text": "is green", "split": "validation"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        colours(tmp_path / f"{number}.png", number)
    return tmp_path


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["reference", "target", "text", "text2", "split"])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        names = ["reference", "target", "text", "text2", "split"]
        columns = {name: [row.get(name) for row in rows] for name in names}
        parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_table_of_any_kind_holds_the_same(folder: Path, ending: str) -> None:
    source = open_source(DataSettings(str(write(folder / f"all{ending}", ROWS)), "table"))
    triplets = [source.train.triplet(number, 0) for number in range(len(source.train))]
    names = [Path(str(image)).name for image in source.train.images]
    assert [(names[t.reference], t.texts, names[t.target]) for t in triplets] == [
        ("0.png", ("is red",), "1.png"),
        ("1.png", ('is blue, with "dots"', "and é"), "2.png"),
    ]
    assert source.test is None
    assert source.validation is not None
    part = source.validation.parts[0]
    (query,) = part.queries  # one query with two answers
    assert [part.ids[row] for row in query.correct] == ["2.png", "1.png"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "  "}, "row 1: text is '  '; expected the columns reference, target, text"),
        ({"target": "0.png"}, "its own reference '0.png'; leave the row out"),
        ({"target": "9.png"}, "9.png is missing; expected images relative to the table's folder"),
        ({"split": "dev"}, "split 'dev'; expected one of train, validation, test"),
    ],
)
def test_a_wrong_row_is_named(folder: Path, row: dict[str, Any], words: str) -> None:
    table = write(folder / "train.csv", [{**ROWS[0], **row}])
    with pytest.raises(DatasetError, match=words.replace("(", r"\(")):
        open_source(DataSettings(str(table), "table"))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "0.png,1.png,is red, and longer",
            "line 2: 4 values in 3 columns; put a text with a comma into double",
        ),
        ('0.png,1.png,"is 3 inches\n1.png,2.png,is red\n2.png,0.png,"x"', "line 4: .*close every quote"),
        ('0.png,1.png,"never closed', "line 2: .*close every quote"),
    ],
)
def test_no_part_of_a_line_is_dropped(folder: Path, lines: str, words: str) -> None:
    (folder / "table.csv").write_text(f"reference,target,text\n{lines}\n")
    with pytest.raises(DatasetError, match=words):
        open_source(DataSettings(str(folder / "table.csv"), "table"))


def test_a_column_is_there_once_and_empty_ones_are_nothing(folder: Path) -> None:
    table = folder / "table.csv"
    table.write_text("reference,target,text,text\n0.png,1.png,is red,is long\n")
    with pytest.raises(
        DatasetError, match=r"column text twice; expected each once \(a second caption is text2"
    ):
        open_source(DataSettings(str(table), "table"))
    table.write_text('reference,target,text,,\n0.png,1.png,"red, a 3"" heel\u2028",,\n\n')
    (text,) = open_source(DataSettings(str(table), "table")).train.triplet(0, 0).texts
    assert text == 'red, a 3" heel\u2028'


def test_a_picture_is_one_row_however_it_is_named(folder: Path) -> None:
    lines = [
        {"reference": "0.png", "target": "1.png", "text": "red", "split": "train"},
        {"reference": "./0.png", "target": "1.png", "text": "red", "split": "test"},
        {"reference": "0.png", "target": ".//2.png", "text": "blue", "split": "test"},
        {"reference": "2.png", "target": "x/../0.png", "text": "plain", "split": "test"},
    ]
    source = open_source(DataSettings(str(write(folder / "all.jsonl", lines)), "table"))
    assert source.test is not None
    (part,) = source.test.parts
    assert part.ids == ("0.png", "1.png", "2.png")
    assert [(query.reference, query.correct.tolist()) for query in part.queries] == [
        (0, [1]),
        (0, [2]),
        (2, [0]),
    ]
    twin = write(folder / "twin.csv", [{"reference": "0.png", "target": "./0.png", "text": "red"}])
    with pytest.raises(DatasetError, match="the target is its own reference"):
        open_source(DataSettings(str(twin), "table"))


def test_what_is_no_table_is_refused(folder: Path) -> None:
    for name, content, words in (
        ("a.txt", b"x", "is no table; expected .csv, .jsonl, .parquet"),
        ("a.jsonl", b"{", "cannot be read"),
        ("a.jsonl", b'{"text": "red", "text": "blue"}', "'text' occurs twice"),
        ("a.csv", b"\xff\xfe", "cannot be read"),
        ("a.csv", b"from,to\n1,2\n", "expected the columns reference, target, text"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(DatasetError, match=words):
            open_source(DataSettings(str(folder / name), "table"))
    with pytest.raises(DatasetError, match=r"holds no train\.csv"):
        open_source(DataSettings(str(folder), "table"))
    with pytest.raises(TrainingError, match="'coco' is not known; expected one of scenes"):
        open_source(DataSettings(str(folder), "coco"))
    with pytest.raises(TrainingError, match="not of the data set shoes"):
        open_source(DataSettings(str(shoes(folder / "shoes")), "shoes", "fashioniq/val"))


def test_a_pair_is_asked_in_both_orders_or_in_one(tmp_path: Path) -> None:
    root = fashioniq(tmp_path)
    splits = {
        captions: open_source(DataSettings(str(root), "fashioniq", captions=captions)).train
        for captions in ("both", "first", "random")
    }
    first = splits["first"].triplet(0, 0).texts
    assert [splits["both"].triplet(n, 0).texts for n in (0, 1)] == [first, first[::-1]]
    assert len(splits["both"]) == 2 * len(splits["first"]) == 2 * len(splits["random"])
    drawn = [splits["random"].triplet(0, draw).texts for draw in range(20)]
    assert set(drawn) == {first, first[::-1]}
    assert drawn == [splits["random"].triplet(0, draw).texts for draw in range(20)]


def test_many_triplets_take_little_memory() -> None:
    count, text = 20_000, "is longer and has a blue belt"
    tracemalloc.start()
    split = FixedTriplets((), (Triplet(n, (f"{text} {n}", "é"), n + 1) for n in range(count)))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < count * 110  # tuples of texts would take 350
    assert len(split) == count
    assert split.triplet(count - 1, 0) == Triplet(count - 1, (f"{text} {count - 1}", "é"), count)


def same(one: Batch, other: Batch) -> bool:
    return one.texts == other.texts and all(
        torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor)
    )


def test_pictures_from_disk_are_those_from_memory_and_an_epoch_can_go_on(tmp_path: Path) -> None:
    root = shoes(tmp_path)
    kept, streamed = (
        load_data(
            configuration(
                root, {"dataset": "shoes", "memory_mb": memory, "workers": 2}, {}, augmentation="crop-flip"
            )
        ).train
        for memory in (64, 0)
    )
    assert kept.images.in_memory and not streamed.images.in_memory
    whole = list(kept.batches(1))
    assert all(map(same, whole, streamed.batches(1)))
    assert all(map(same, whole[1:], streamed.batches(1, done=1)))
    again = list(kept.batches(2))
    assert not all(map(same, whole, again))
    # An image is cut and turned anew in each epoch, and is the centre, unturned, where nothing is learned.
    row = [0]
    centre = kept.images.take(row)
    cuts = [kept.images.take(row, [np.random.default_rng(n)]) for n in range(20)]
    assert len({cut.tobytes() for cut in cuts}) > 4
    assert centre.shape == cuts[0].shape == (1, 24, 24, 3)


def test_training_from_disk_gives_the_bits_of_training_from_memory(tmp_path: Path) -> None:
    root = shoes(tmp_path / "data")
    weights = []
    for memory in (64, 0):
        config = configuration(root, {"dataset": "shoes", "memory_mb": memory}, {}, epochs=2)
        train(config, tmp_path / str(memory), "cpu")
        weights.append(torch.load(TrainingFiles(tmp_path / str(memory)).model, weights_only=True)["weights"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_a_process_finds_wrong_is_said_plainly(tmp_path: Path) -> None:
    root = shoes(tmp_path)
    (root / "images/womens/3.jpg").write_bytes(b"no picture")
    config = configuration(root, {"dataset": "shoes", "memory_mb": 0, "workers": 2}, {})
    with pytest.raises(ImageError, match=r"3\.jpg") as found:
        list(load_data(config).train.batches(0))
    assert "Traceback" not in str(found.value)


def test_a_table_without_a_split_to_measure_keeps_the_last_epoch(folder: Path) -> None:
    settings = TrainingSettings(epochs=2, families_per_batch=2)
    data = DataSettings(str(write(folder / "all.jsonl", ROWS[:2])), "table")
    end = train(TrainingConfig(data, MODEL, settings), folder / "out", "cpu")
    assert (end["best_epoch"], end["test"], end["validation_measure"]) == (2, None, None)


def test_what_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    root = shoes(tmp_path)
    for data, training, words in (
        ({"preparation": "plain"}, {"augmentation": "crop"}, "a random crop needs pictures that are cropped"),
        ({}, {"augmentation": "turn"}, "expected one of none, flip, crop, crop-flip"),
        ({"captions": "all"}, {}, "expected one of both, random, first"),
        ({}, {"loss_set": 1}, "expected 0 for the whole batch, or at least 2"),
    ):
        with pytest.raises(CirError, match=words):
            load_data(configuration(root, {"dataset": "shoes", **data}, {}, **training))


def test_a_table_may_begin_with_a_byte_order_mark(folder: Path) -> None:
    """As Excel's "CSV UTF-8" does."""
    table = write(folder / "table.csv", [{"reference": "0.png", "target": "1.png", "text": "redder"}])
    plain = open_source(DataSettings(str(table), "table"))
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert open_source(DataSettings(str(table), "table")).digest == plain.digest


@pytest.mark.parametrize("split", ["train", "test"])
def test_half_a_character_is_no_text(folder: Path, split: str) -> None:
    lines = [
        '{"reference": "0.png", "target": "1.png", "text": "redder"}',
        f'{{"reference": "0.png", "target": "1.png", "text": "\\ud83d", "split": "{split}"}}',
    ]
    (folder / "table.jsonl").write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"a lone surrogate: '\\ud83d'"):
        open_source(DataSettings(str(folder / "table.jsonl"), "table"))
