"""Two-way cross-validation (ARTEMIS, Table 3): chosen on one half of the queries, measured on the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cir_export.training.evaluation import two_way
from cir_export.training.trainer import train
from tests.training.test_data_sets import configuration, fashioniq


def epoch(number: int, *measures: float) -> dict[str, Any]:
    halves = [{"measure": measure, "recall": {"10": measure / 2}} for measure in measures]
    return {"event": "epoch", "epoch": number, "validation": {"halves": halves}}


def test_an_epoch_is_chosen_on_one_half_and_measured_on_the_other() -> None:
    log = [{"event": "start"}, epoch(1, 0.4, 0.1), epoch(2, 0.2, 0.3)]
    # The first half chooses epoch 1, whose other half has 0.1; the second epoch 2, whose other has 0.2.
    found = two_way(log)
    assert found is not None
    assert found["epochs"] == [1, 2]
    assert (found["measure"], found["recall"]["10"]) == pytest.approx((0.15, 0.075))
    assert two_way([{"event": "epoch", "epoch": 1, "validation": {}}]) is None
    assert two_way([{"event": "epoch", "epoch": 1, "validation": None}]) is None


def test_fashioniq_reports_it(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = []
    config = configuration(fashioniq(tmp_path / "data"), {"dataset": "fashioniq"}, {}, epochs=2)
    end = train(config, tmp_path / "out", "cpu", report=entries.append)
    assert end["two_way"] == two_way(entries)
    for entry in entries:
        if entry["event"] == "epoch":
            found = entry["validation"]
            # Both orders of a pair are in one half; the parts' halves are as large, up to one pair.
            assert len(found["halves"]) == 2
            assert set(found["parts"]) == {"dress", "shirt", "toptee"}


def test_a_reference_that_is_its_own_answer_has_no_rank(tmp_path: Path) -> None:
    """It leaves the ranking: a miss, as for its authors, and no median over the others."""
    root = fashioniq(tmp_path / "data")
    captions = root / "annotations/captions/cap.dress.val.json"
    pairs = json.loads(captions.read_text())
    pairs[0]["target"] = pairs[0]["candidate"]
    captions.write_text(json.dumps(pairs))
    end = train(configuration(root, {"dataset": "fashioniq"}, {}, epochs=1), tmp_path / "out", "cpu")
    assert "median_rank" not in end["test"] and set(end["test"]["recall"]) == {"10", "50"}
