"""`cir-bench scoring --tokens`: what is timed is the definition's answer over items of several vectors."""

from __future__ import annotations

import numpy as np
import pytest

from cir_bench.commands import main
from cir_bench.scoring import measurement
from cir_bench.scoring.entries import alternatives, ours
from cir_bench.scoring.workload import Workload, plain_terms, unit_items
from cir_infer.scoring.contract import Rows


@pytest.mark.parametrize("dtypes", [("float32", "float16", "int8"), ("float16",)])
def test_every_entry_is_verified_and_a_wrong_answer_is_noticed(dtypes: tuple[str, ...]) -> None:
    work = Workload(unit_items(70, 3, 24, 0), plain_terms(2, 24, 1), 5, 1)
    entries = [*ours(work, dtypes), *alternatives(work)]
    named = {entry.name: entry for entry in entries if entry.verify is not None}
    assert {"cir/cpu", "cir/exact-from-int8"} <= named.keys()
    for entry in entries:
        answer = entry.call(2)
        if entry.verify is not None:
            assert entry.verify(answer), entry.name
    answer = named["cir/cpu"].call(2)
    assert not named["cir/cpu"].verify(answer._replace(scores=np.full_like(answer.scores, np.nan)))
    rows = answer.rows
    assert not work.is_best((rows + 1) % 70, None, Rows.of(work.values))
    assert work.flops == 2 * 2 * 24 * 210


@pytest.mark.parametrize("other", [["--device", "cuda"], ["--linearised", "usearch"]])
def test_what_is_measured_without(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scoring", "--rows", "60", "--k", "5", "--tokens", "2", *other]) == 2
    assert "--tokens" in capsys.readouterr().err


def test_what_is_measured_is_told_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_PAUSE_S", 0.0)
    work = Workload(unit_items(70, 3, 24, 0), plain_terms(2, 24, 1), 5, 1)
    told: list[str] = []
    found = measurement.measure(work, ("float16",), 2, told.append)
    assert told[:-1] == [f"verifying {entry['name']} on {entry['dtype']} rows" for entry in found]
    assert told[-1].startswith(f"timing, 2 rounds of {len(found)} entries")
    assert all(entry["median_ms"] > 0 for entry in found)
    (mine,) = [entry for entry in found if entry["name"] == "cir/cpu"]
    assert mine["verified"] and mine["of_roofline"] > 0
