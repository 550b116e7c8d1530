"""What the papers report beside the usual: a test split, references in another view, several trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_bench.accuracy.measurement import over_runs
from cir_bench.report.text import accuracy_text
from cir_eval.datasets import css as css_reader
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_eval.protocols import protocol
from cir_infer.errors import DatasetError, UsageError
from tests.bench.layouts import css
from tests.training.test_data_sets import fashioniq


def test_the_test_split_has_targets_only_in_the_later_file(tmp_path: Path) -> None:
    root = fashioniq(tmp_path)
    captions = root / "annotations/captions"
    for category in ("dress", "shirt", "toptee"):
        pairs = json.loads((captions / f"cap.{category}.val.json").read_text())
        shutil.copy(
            root / f"annotations/image_splits/split.{category}.val.json",
            root / f"annotations/image_splits/split.{category}.test.json",
        )
        hidden = [{key: pair[key] for key in ("candidate", "captions")} for pair in pairs]
        (captions / f"cap.{category}.test.json").write_text(json.dumps(hidden))
    asked = protocol("fashioniq/artemis").load(root, "test")
    assert all(query.correct.size == 0 for part in asked for query in part.queries)
    for category in ("dress", "shirt", "toptee"):
        shutil.copy(captions / f"cap.{category}.val.json", captions / f"pair2cap.{category}.test.json")
    answered = protocol("fashioniq/artemis").load(root, "test")
    expected = protocol("fashioniq/artemis").load(root, "val")
    for one, other in zip(answered, expected, strict=True):
        assert [query.correct.tolist() for query in one.queries] == [
            query.correct.tolist() for query in other.queries
        ]


def test_css_draws_its_objects_from_above(tmp_path: Path) -> None:
    scene = [
        {"pos": [0.25, 0.5], "shape": "rectangle", "color": "red", "size": "large"},
        {"pos": [0.75, 0.25], "shape": "circle", "color": "blue", "size": "small"},
        {"pos": [0.75, 0.75], "shape": "triangle", "color": "green", "size": "large"},
    ]
    drawn = css_reader.Drawings([scene])[0]
    assert drawn.shape == (64, 64, 3)
    assert drawn[0, 0].tolist() == [255, 255, 255]
    assert drawn[16, 32].tolist() == drawn[9, 25].tolist() == [244, 35, 35]
    assert drawn[48, 16].tolist() == [42, 75, 215]
    assert drawn[45, 19].tolist() == [255, 255, 255]  # a square on its tip has no corner there
    wide, narrow = ((drawn[row] == [29, 205, 20]).all(1).sum() for row in (55, 42))
    assert wide > narrow > 0
    root = css(tmp_path)
    part = protocol("css/tirg-2d-to-3d").load(root, "test")[0]
    assert part.reference_images is not None
    assert [q.correct.tolist() for q in part.queries] == [
        q.correct.tolist() for q in protocol("css/tirg").load(root, "test")[0].queries
    ]
    with pytest.raises(DatasetError, match=r"scene 0 cannot be drawn .*expected objects with pos"):
        part.reference_images[0]  # the layout's objects have no colour


def test_scenes_across_views_differ_in_the_reference_alone(tmp_path: Path) -> None:
    plan = Plan(train_families=1, validation_queries=2, test_queries=2, gallery=20, image_size=32)
    generate(tmp_path / "scenes", plan, jobs=1)
    across, same = (
        protocol(f"scenes/{name}").load(tmp_path / "scenes", "test")[0]
        for name in ("flat-to-shaded", "shaded")
    )
    assert (across.ids, across.images, same.reference_images) == (same.ids, same.images, None)
    assert across.reference_images is not None
    assert {Path(str(image)).parent.name for image in across.reference_images} == {"flat"}


def result(recall: float, system: str = "artemis") -> dict[str, Any]:
    return {
        "bundle": {"system": system, "fingerprint": "f", "precision": "float32", "device": "cpu"},
        "mean": {"R@1": recall, "median_rank": 3.0},
    }


def test_several_trainings_give_mean_and_deviation() -> None:
    runs = over_runs([result(10.0), result(12.0), result(14.0)])
    assert runs["mean"] == {"R@1": 12.0, "median_rank": 3.0}
    assert runs["deviation"] == {"R@1": pytest.approx(2.0), "median_rank": 0.0}
    text = accuracy_text(
        {
            **result(10.0),
            "runs": runs,
            "settings": {"row_type": "float32"},
            "protocol": {"name": "p", "split": "val", "source": "s"},
            "commit": "c",
            "parts": [],
            "pooled": {},
            "measure": {"metrics": ["R@1"], "value": 10.0},
            "doubts": [],
        }
    )
    assert "over 3 trainings: R@1 12.00 ± 2.00" in text
    with pytest.raises(UsageError, match="bundles of artemis and tirg; expected trainings of one system"):
        over_runs([result(1.0), result(2.0, "tirg")])
    assert np.isfinite(list(runs["deviation"].values())).all()
