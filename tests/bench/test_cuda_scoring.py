"""The GPU benchmark as it is, on the emulated GPU and the CPU: every entry verified, timed, reported."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from cir_bench.commands import main
from cir_bench.cuda_scoring import TARGETS, Case, measure, parts, pytorch, reached, sweep
from cir_bench.cuda_scoring.measurement import kinds_of_memory, predictions
from cir_bench.cuda_scoring.parts import Sized, joined, launch_each_once, run_part
from cir_bench.cuda_scoring.place import Place
from cir_bench.cuda_scoring.workload import Workload, stored_rows
from cir_infer.scoring.cuda.tuning import Tuning
from cir_infer.scoring.reference import ReferenceScorer
from tests.emulation.emulated import EmulatedDevice

SMALL = Case(rows=700, dim=64, queries=3, k=10, samples=2)


def by_the_clock(launch: Any, stream: Any) -> float:
    start = time.perf_counter()
    launch(stream)
    return (time.perf_counter() - start) * 1e3


@pytest.fixture
def place() -> Place:
    return Place(EmulatedDevice(), "cpu", by_the_clock, 1 << 17, gemm_side=64, crossover_rows=40, calls=2)


def test_every_entry_is_verified_and_timed(place: Place) -> None:
    results = measure(SMALL, place=place, compiler="eager")
    named = {(r["name"], r["dtype"]): r for r in results}
    assert len(named) == len(results)
    ours = {("cir/cuda", d) for d in ("float16", "float32", "int8")} | {
        ("cir/cuda-exact-from-int8", "float16")
    }
    pytorch = {("torch/literal", "float32"), ("torch/literal-compiled", "float32")}
    pytorch |= {(f"torch/{name}", "float16") for name in ("two-gemms-topk", "gemv-topk", "copy")}
    read = {(f"read/{d}", d) for d in ("float16", "float32", "int8")}
    for name in ours | pytorch | read | {("faiss/flat, one dot", "float16")}:
        entry = named[name]
        assert entry["verified"] and 0 < entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"], entry
    assert named["cuvs/brute-force, one dot", "float16"]["skipped"] == "cuVS is not installed"
    assert named["read/float16", "float16"]["of_roofline"] == pytest.approx(1)
    assert named["cir/cuda", "float16"]["extra_bytes"] == 0
    assert named["cir/cuda-exact-from-int8", "float16"]["extra_bytes"] == 700 * 68
    assert "int8 scan" in named["cir/cuda-exact-from-int8", "float16"]["scorer"]


def test_both_kinds_of_memory_are_read_whole(place: Place) -> None:
    rates = kinds_of_memory(place, 1 << 14, 2)
    assert set(rates) == {"own", "page-locked"} and min(rates.values()) > 0
    assert place.device.launched == ["read_bytes"] * 4


@pytest.mark.slow
def test_the_literal_loop_compiles(place: Place) -> None:
    results = measure(SMALL, ("float16",), place=place)
    (compiled,) = (r for r in results if r["name"] == "torch/literal-compiled")
    assert compiled["verified"] and compiled["median_ms"] > 0


def test_a_long_loop_over_queries_is_timed_on_some_and_counted_for_all(place: Place) -> None:
    many = dataclasses.replace(SMALL, queries=32, rows=200)
    (entry,) = (
        e
        for e in pytorch.in_pytorch(place, Workload.of(many, "float16"), "eager")
        if e.name == "torch/literal"
    )
    assert entry.facts == {"queries_timed": 8} and entry.times == 4
    assert len(entry.launch(0, None)) == 8


def test_a_wrong_answer_is_not_timed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytorch.two_product_scores
    monkeypatch.setattr(pytorch, "two_product_scores", lambda *args: -real(*args))
    results = measure(SMALL, ("float16",), place=place, compiler="eager")
    (entry,) = (r for r in results if r["name"] == "torch/two-gemms-topk")
    assert not entry["verified"] and entry["skipped"] == "the answer is wrong" and "median_ms" not in entry


def test_an_entry_that_fails_is_left_out_by_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(pytorch, "two_product_scores", fail)
    results = measure(SMALL, ("float16",), place=place, compiler="eager")
    assert [r["skipped"] for r in results if r["name"] == "torch/two-gemms-topk"] == ["out of memory"]
    assert sum("median_ms" in r for r in results) >= 7


@pytest.mark.parametrize("spoil", ["row", "score", "NaN", "double", "outside", "order"])
def test_the_check_of_an_answer_finds_what_is_wrong(spoil: str) -> None:
    work = Workload.of(SMALL, "float32")
    answer = ReferenceScorer(work.rows).topk(work.terms, 10)
    rows, scores = answer.rows.copy(), answer.scores.copy()
    assert work.is_best(rows, scores, work.terms, 1e-5)
    assert not work.is_best(rows, scores, work.dots, 1e-5)
    if spoil == "row":
        everything = ReferenceScorer(work.rows).topk(work.terms, 700)
        rows[0, 9], scores[0, 9] = everything.rows[0, 11], everything.scores[0, 11]
    elif spoil == "score":
        scores[0, 3] += 1e-3
    elif spoil == "NaN":
        scores[0, 3] = np.nan
    elif spoil == "double":
        rows[0, 1] = rows[0, 0]
    elif spoil == "outside":
        rows[0, 1] = 700
    else:
        rows[0] = rows[0, ::-1].copy()
        scores[0] = scores[0, ::-1].copy()
    assert not work.is_best(rows, scores, work.terms, 1e-5)


def test_rows_are_the_same_directions_in_every_type() -> None:
    exact = stored_rows(SMALL, "float32").blocks[0]
    np.testing.assert_allclose(np.linalg.norm(exact, axis=1), 1, atol=1e-6)
    for dtype, error in (("float16", 1e-3), ("int8", 5e-3)):
        rows = stored_rows(SMALL, dtype)
        assert rows.dtype == dtype
        np.testing.assert_allclose(rows.take(range(700)), exact, atol=error)


def test_the_sweep_measures_sizes_and_predicts(place: Place) -> None:
    said: list[str] = []
    sizes = ((300, 1), (300, 2))
    found = sweep(sizes, dim=32, k=400, samples=2, progress=said.append, place=place, compiler="eager")
    assert [(c["rows"], c["queries"], c["k"]) for c in found["cases"]] == [(300, 1, 300), (300, 2, 300)]
    assert found["left_out"] == [] and "300 rows, 2 queries" in said
    assert found["call"]["rows"] == 15_000 and found["call"]["median_ms"] > 0
    assert found["gemm_flops"] > 0 and found["crossover"]["queries"] >= 1
    ours = [e for c in found["cases"] for e in c["results"] if e["name"] == "cir/cuda"]
    assert all(e["of_gemm_rate"] > 0 for e in ours)
    assert {p["kind"] for p in found["predictions"]} == {"predicted"}
    assert {"T4", "Jetson AGX Orin 64GB"} <= {p["gpu"] for p in found["predictions"]}


def test_a_sweep_without_time_names_what_it_left_out(place: Place) -> None:
    found = sweep(((300, 1),), dim=32, k=5, seconds=-1, place=place)
    assert found["cases"] == [] and found["predictions"] == [] and "crossover" not in found
    assert [(size["rows"], size["why"]) for size in found["left_out"]] == [(300, "no time left")]


def test_a_part_keeps_what_it_has_measured_and_parts_join(place: Place) -> None:
    kept: list[int] = []
    sized = Sized(300, 1, ("float16", "int8"), ("torch/gemv-topk",))
    single = run_part(
        "single",
        lambda found: kept.append(len(found["cases"])),
        place=place,
        part=(sized, "call"),
        samples=2,
    )
    assert kept == [1, 2, 2, 2] and single["call"]["median_ms"] > 0
    names = [{(e["name"], e["dtype"]) for e in case["results"]} for case in single["cases"]]
    assert ("torch/gemv-topk", "float16") in names[0] and not any("literal" in name for name, _ in names[0])
    assert names[1] == {("read/int8", "int8"), ("cir/cuda", "int8")}
    batches = run_part("batches", kept.append, place=place, part=("gemm_flops", Sized(300, 3)), samples=2)
    assert batches["cases"][0]["results"][1]["of_gemm_rate"] > 0
    whole = joined([single, batches])
    assert len(whole["cases"]) == 3 and whole["call"] == single["call"]
    assert whole["gemm_flops"] == batches["gemm_flops"] and {p["kind"] for p in whole["predictions"]} == {
        "predicted"
    }


def test_a_size_that_does_not_fit_is_left_out_by_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(parts, "measure", full)
    found = run_part("single", lambda _: None, place=place, part=(Sized(300, 1),))
    assert found["cases"] == [] and "no room" in found["left_out"][0]["why"]


def test_the_profilers_program_launches_each_kind_of_kernel(place: Place) -> None:
    launched: list[str] = []
    launch = place.device.launch

    def noted(kernel: str, *args: Any) -> None:
        launched.append(kernel)
        launch(kernel, *args)

    place.device.launch = noted  # type: ignore[method-assign]
    launch_each_once(place, 200, 12, Tuning(1, 0, first_rows=100, least_first_rows=100))
    families = {name.partition("_")[0] for name in launched}
    assert {"scan", "few", "many"} <= families and any("_i8" in name for name in launched)


def test_predictions_are_bytes_over_bandwidth_at_the_measured_share() -> None:
    entry = {"name": "cir/cuda", "dtype": "float16", "of_roofline": 1.25}
    case = {"rows": 1_000_000, "dim": 512, "queries": 1, "results": [entry]}
    found = {p["gpu"]: p for p in predictions([case]) if p["rows"] == 1_000_000}
    assert found["T4"]["scan_ms"] == pytest.approx(1_000_000 * 1024 / 320e9 * 1.25 * 1e3)
    assert found["T4"]["share_of_bandwidth"] == pytest.approx(0.8)
    assert predictions([{**case, "queries": 2}]) == []


def benchmark() -> dict[str, Any]:
    def entry(name: str, ms: float, dtype: str = "float16", **more: float) -> dict[str, Any]:
        return {"name": name, "dtype": dtype, "median_ms": ms, **more}

    def case(rows: int, queries: int, *results: dict[str, Any]) -> dict[str, Any]:
        return {"rows": rows, "queries": queries, "dim": 512, "k": 50, "results": list(results)}

    return {
        "cases": [
            case(
                1_000_000,
                1,
                entry("cir/cuda", 0.25, of_roofline=1.25),
                entry("cir/cuda-exact-from-int8", 0.125),
                entry("torch/literal", 10.0, "float32"),
                entry("torch/gemv-topk", 0.5),
            ),
            case(1_000_000, 64, entry("cir/cuda", 1.0), entry("torch/two-gemms-topk", 2.0)),
            case(100_000, 1024, entry("cir/cuda", 1.0, of_gemm_rate=0.7), entry("torch/two-gemms-topk", 4.0)),
        ],
        "call": {"rows": 15_000, "median_ms": 0.035},
    }


def test_what_is_to_be_reached_is_read_from_a_benchmark() -> None:
    found = [(figure, target.met(figure)) for target, figure in reached(benchmark()) if figure is not None]
    assert found == [
        (pytest.approx(0.8), False),
        (pytest.approx(2.0), True),
        (pytest.approx(0.7), True),
        (pytest.approx(40.0), True),
        (pytest.approx(2.0), False),
        (pytest.approx(4.0), True),
        (pytest.approx(0.5), True),
        (pytest.approx(35.0), True),
    ]
    assert len(found) == len(TARGETS)
    assert [figure for _, figure in reached({"cases": []})] == [None] * len(TARGETS)


def test_the_sweep_is_for_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scoring", "--sweep"]) != 0
    assert "--device cuda" in capsys.readouterr().err
