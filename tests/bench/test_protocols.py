"""Data sets in their published layouts become galleries, queries and answers as their authors have them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from cir_eval.datasets.scenes.generation import Plan, generate
from cir_eval.protocols import protocol, protocol_names
from cir_infer.errors import DatasetError, UsageError
from tests.bench import layouts


def load(name: str, root: Path, split: str | None = None):
    plan = protocol(name)
    (part,) = plan.load(root, split or plan.splits[0])
    return plan, part


def summary(part):
    return [(q.reference, q.texts, q.correct.tolist()) for q in part.queries]


def test_every_protocol_is_found_by_name_and_by_data_set():
    names = protocol_names()
    assert len(set(names)) == len(names)
    assert all(protocol(name).name == name for name in names)
    assert all(set(protocol(name).measure) <= _metrics(protocol(name)) for name in names)
    assert protocol("shoes").name == "shoes/artemis"
    with pytest.raises(UsageError, match="expected one of"):
        protocol("shoes/nobody")
    with pytest.raises(UsageError):
        protocol("os")


def _metrics(plan) -> set[str]:
    precision = {f"mAP@{k}" if k else "mAP" for k in plan.map_ks}
    return {f"R@{k}" for k in plan.ks} | {f"R_sub@{k}" for k in plan.subset_ks} | precision


def test_shoes_has_its_split_file_as_gallery(tmp_path: Path):
    _, part = load("shoes/artemis", layouts.shoes(tmp_path))
    assert len(part.ids) == 4
    assert summary(part) == [(0, ("is red",), [1]), (2, ("has longer laces",), [3])]
    assert all(Path(image).is_file() for image in part.images)


def test_shoes_after_val_adds_references_and_targets(tmp_path: Path):
    _, part = load("shoes/val", layouts.shoes(tmp_path), "train")
    assert [id_[-5] for id_ in part.ids] == ["0", "1", "2", "3", "5"]
    with pytest.raises(DatasetError, match="not in its split"):
        load("shoes/artemis", tmp_path, "train")


def test_mitstates_asks_for_every_other_state_of_a_test_noun(tmp_path: Path):
    plan, part = load("mitstates", layouts.mitstates(tmp_path))
    assert [id_.split("/")[0] for id_ in part.ids] == [
        f for f in ("dry sand", "new clock", "old clock", "wet sand") for _ in range(2)
    ]
    assert len(part.queries) == 8
    first = part.queries[0]
    assert (first.reference, first.texts, first.correct.tolist()) == (0, ("wet",), [6, 7])
    assert first.also["noun"].tolist() == [0, 1, 6, 7]
    assert first.also["adjective"].tolist() == [6, 7]
    assert plan.reference_excluded
    _, train = load("mitstates", tmp_path, "train")
    assert {id_.split("/")[0] for id_ in train.ids} == {"ripe apple"}
    assert train.queries == ()


def test_css_counts_every_image_of_the_target_scene(tmp_path: Path):
    _, part = load("css", layouts.css(tmp_path))
    assert summary(part) == [
        (0, ("make red circle blue",), [2, 3]),
        (1, ("make red circle blue",), [2, 3]),
        (3, ("remove green square",), [0]),
    ]
    assert part.ids[2] == "css_test_000002.png"


class _Payload:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return (Path.touch, (self.victim,))


def test_css_is_read_without_executing_what_is_in_it(tmp_path: Path):
    victim = tmp_path / "executed"
    array = np.array({"test": _Payload(victim)}, object)
    np.save(tmp_path / "css_toy_dataset_novel2_small.dup.npy", array, allow_pickle=True)
    with pytest.raises(DatasetError, match="no data set needs"):
        load("css", tmp_path)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", pickle.dumps({"test": 1})])
def test_css_that_is_damaged_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "css_toy_dataset_novel2_small.dup.npy").write_bytes(content)
    with pytest.raises(DatasetError):
        load("css", tmp_path)


def test_birds_has_one_query_an_annotation(tmp_path: Path):
    _, part = load("birds", layouts.birds(tmp_path))
    assert part.ids == ("101", "102", "103")
    assert summary(part) == [
        (0, ('Animal 2 has a "black" hood.',), [1]),
        (0, ("Animal 2 is smaller.",), [1]),
        (2, ("Animal 1 is brown.",), [0]),
    ]


def test_a_text_keeps_the_signs_that_end_no_line(tmp_path: Path):
    table = layouts.birds(tmp_path) / "birds-to-words-v1.0.tsv"
    table.write_text(table.read_text().replace("is smaller.", "is smaller,\u2028and\x85grey."))
    (part,) = protocol("birds/sac").load(tmp_path, "test")
    assert part.queries[1].texts == ("Animal 2 is smaller,\u2028and\x85grey.",)


def test_birds_with_another_header_is_refused(tmp_path: Path):
    (tmp_path / "birds-to-words-v1.0.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(DatasetError, match="img1ObservationURL"):
        load("birds", tmp_path)


def test_the_generated_scenes(tmp_path: Path):
    plan = Plan(
        train_families=0,
        validation_queries=4,
        test_queries=4,
        gallery=40,
        hard_negatives=2,
        seed=1,
        image_size=32,
    )
    generate(tmp_path / "scenes", plan, 1, lambda batches, total: batches)
    for name in ("scenes/shaded", "scenes/flat"):
        _, part = load(name, tmp_path / "scenes")
        assert len(part.ids) == 40
        assert len(part.queries) == 4
        assert all(Path(image).is_file() for image in part.images)


@pytest.mark.parametrize("name", ["shoes", "mitstates", "css", "birds", "scenes"])
def test_an_empty_folder_is_named(tmp_path: Path, name: str):
    with pytest.raises(DatasetError, match=str(tmp_path)):
        load(name, tmp_path)
