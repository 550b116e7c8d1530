"""The engine part of `make gpu-check` on the emulated GPU: it passes there, and fails when it should."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cir_bench.engine_check import steps
from cir_bench.engine_check.reach import reached
from cir_bench.engine_check.subject import Subject, open_subject
from cir_infer.bundle import write_bundle
from cir_infer.errors import DeviceError
from tests.bundles import manifest_of, members_of
from tests.runtime.recurrent.graphs import recurrent_graph
from tests.runtime.tensorrt.gpu import CapturingDevice
from tests.runtime.tensorrt.small_check import small_check

if TYPE_CHECKING:
    from tests.export.once import Once


@pytest.fixture
def subject(gpu: CapturingDevice, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    from cir_bench.latency import workload

    monkeypatch.setattr(workload, "_PHOTOGRAPH", (48, 36))
    return open_subject(bundle, tmp_path, rows=300)


def test_every_step_passes_on_plans_that_are_right(subject: Subject, gpu: CapturingDevice) -> None:
    assert steps.parity(subject, 12)["passed"]
    cache = steps.cache(subject)
    assert cache["passed"] and "damaged" in cache["damage"] and "'batch': 32" in cache["mismatch"]
    captured = steps.captured(subject, 0.1)
    assert captured["passed"] and captured["chains"][0]["cuda_graph"]
    threads = steps.threads(subject, 40, free_bytes=lambda: (1 << 30) - gpu.live_bytes)
    assert threads["passed"] and threads["different_answers"] == 0 and threads["memory_grown_bytes"] == 0
    latency = steps.latency(subject, 0.1, {"other": lambda: None})
    assert {"query", "scoring", "refined hit", "text encoder"} <= set(latency["stages_ms"])
    assert latency["ratios"]["other over query"]["median"] < 1
    drift = steps.drift(subject, subject, 20)
    assert drift["passed"] and drift["worst_cosine"] > 1 - 1e-6 and drift["top10_agreement"] == 1


def test_the_text_encoder_is_checked_and_timed_in_each_place(
    gpu: CapturingDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cir_bench.engine_check import placements
    from cir_bench.latency import workload
    from cir_infer.runtime.recurrent import opening
    from cir_infer.runtime.recurrent.encoder import RecurrentEncoder

    monkeypatch.setattr(workload, "_PHOTOGRAPH", (48, 36))
    monkeypatch.setattr(placements, "_LENGTHS", (4,))
    monkeypatch.setattr(opening, "_EVERY", 6)
    members = {**members_of("artemis"), "text.onnx": recurrent_graph(hidden=3, width=5, words=15)}
    write_bundle(tmp_path / "bigru.cir", manifest_of("artemis"), members)
    subject = open_subject(tmp_path / "bigru.cir", tmp_path, rows=50)
    found = placements.text_placements(subject, 0.1)
    assert found["passed"] and set(found["ms"]["4"]) == {"cpu", "kernel"}
    assert found["kernel"]["worst_cosine"] > 0.99999 and found["kernel"]["blocks"] == 1
    assert {"cpu_ms", "tensorrt_ms", "kernel_ms"} <= set(found["chosen"])
    run = RecurrentEncoder.run
    monkeypatch.setattr(
        RecurrentEncoder, "run", lambda self, feeds: {"text": run(self, feeds)["text"][:, ::-1]}
    )
    with pytest.raises(DeviceError, match="gives another text embedding"):
        placements.text_placements(subject, 0.1)


def test_an_encoder_without_a_recurrent_layer_is_timed_on_the_cpu(subject: Subject) -> None:
    from cir_bench.engine_check.placements import text_placements

    found = text_placements(subject, 0.1)
    assert found["passed"] and "Div stands where" in found["kernel"] and set(found["ms"]["4"]) == {"cpu"}


def test_wrong_embeddings_and_wrong_answers_fail(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = subject.searcher.engine
    encode = engine.encode_images
    with monkeypatch.context() as wrong:
        wrong.setattr(engine, "encode_images", lambda *asked: encode(*asked)[:, ::-1].copy())
        assert not steps.parity(subject, 6)["passed"]
        assert not steps.drift(subject, open_like(subject), 12)["passed"]

    def one_value(*asked: Any) -> Any:
        rows = encode(*asked)
        rows[:, 3] += 0.005 * np.abs(rows).max(1)
        return rows

    def longer(*asked: Any) -> Any:
        return encode(*asked) * 1.1

    for changed in (one_value, longer):
        with monkeypatch.context() as wrong:
            wrong.setattr(engine, "encode_images", changed)
            found = steps.parity(subject, 6)
            assert not found["passed"] and found["worst_cosine"] > 0.9999 and "expected" in found["faults"][0]
            assert steps.drift(subject, open_like(subject), 12)["passed"] is (changed is one_value)

    with monkeypatch.context() as wrong:
        compose = engine.compose
        wrong.setattr(
            engine,
            "compose",
            lambda *asked: replace(terms := compose(*asked), numerators=terms.numerators * 2),
        )
        assert not steps.captured(subject, 0.1)["passed"], "its scores are half of those of its steps"

    answers = iter(range(10**6))
    query = type(subject.searcher).query

    def unsteady(self: Any, image: Any, text: Any, k: int) -> Any:
        hits = query(self, image, text, k)
        return hits[1:] if next(answers) % 70 == 69 else hits

    monkeypatch.setattr(type(subject.searcher), "query", unsteady)
    found = steps.threads(subject, 100, workers=2)
    assert not found["passed"] and found["different_answers"] > 0


def open_like(subject: Subject) -> Any:
    """The CPU's engine in the place of the searcher's."""

    class Exact:
        class searcher:
            engine = subject.cpu

    return Exact


def test_memory_that_grows_fails(subject: Subject) -> None:
    left = iter([1 << 30, 1 << 29])
    assert not steps.threads(subject, 10, free_bytes=lambda: next(left))["passed"]


def test_targets_are_read_from_the_result() -> None:
    assert all(target["met"] is None for target in reached({}))
    ratios = {
        "torch eager float32 over query": {"median": 12.0},
        "query over query with its text encoded before": {"median": 1.08},
    }
    result = {
        "bundles": {
            "resnet50-bigru-float16": {"latency": {"ratios": ratios}, "drift": {"worst_cosine": 0.99995}},
            "resnet50-bigru-int8": {"parity": {"worst_cosine": 0.9989, "top10_agreement": 0.88}},
            "artemis-scenes-float16": {"parity": {"worst_cosine": 0.9989, "top10_agreement": 0.991}},
        }
    }
    found = {target["target"]: target["met"] for target in reached(result)}
    assert found["PyTorch eager float32 over ours, float16"] is True
    assert found["what the text adds to a query"] is False
    assert found["float16 against float32: worst cosine"] is True
    assert found["cold start to the first answer, s"] is None
    against = "against ONNX Runtime on the CPU"
    assert found[f"resnet50-bigru, int8, {against}: worst cosine"] is True
    assert found[f"resnet50-bigru, int8, {against}: top-10 agreement"] is False
    assert found[f"artemis-scenes, float16, {against}: worst cosine"] is False
    assert found[f"artemis-scenes, float16, {against}: top-10 agreement"] is True
    assert found[f"artemis-scenes, int8, {against}: worst cosine"] is None


def test_limits_are_those_of_the_gate() -> None:
    from cir_export.precision.gate import LIMITS

    # Bfloat16 is OpenVINO's; float32 needs no gate.
    assert {name: tuple(limits) for name, limits in steps.LIMITS.items() if name != "float32"} == {
        name: (limits.cosine, limits.agreement) for name, limits in LIMITS.items() if name != "bfloat16"
    }


@pytest.mark.parametrize(("precision", "passes"), [("float16", False), ("int8", True)])
def test_a_precision_is_held_to_its_own_limit(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, precision: str, passes: bool
) -> None:
    engine = subject.searcher.engine
    encode = engine.encode_images
    lowered = replace(subject.cpu.manifest, precision=precision)
    monkeypatch.setattr(subject.cpu, "manifest", lowered)

    def blurred(*asked: Any) -> Any:
        rows = encode(*asked)
        turned = rows + 0.01 * np.random.default_rng(0).standard_normal(rows.shape, dtype=np.float32)
        return turned / np.linalg.norm(turned, axis=1, keepdims=True)

    monkeypatch.setattr(engine, "encode_images", blurred)
    found = steps.parity(subject, 12)
    assert 0.995 < found["worst_cosine"] < 0.9999 and found["passed"] is passes


def test_pytorchs_baseline_answers_as_the_engine(tmp_path: Path, exported_once: Once) -> None:
    """On PyTorch's CPU, with the model that the bundle was exported from."""
    from cir_bench.engine_check.baselines import torch_answer
    from cir_export.export import export_bundle
    from cir_export.verification import draw_samples
    from cir_infer.engine import Engine
    from cir_infer.scoring.contract import Rows
    from cir_infer.scoring.reference import ReferenceScorer
    from tests.export.test_export import trained as tiny

    trained, path = tiny(), tmp_path / "model.cir"
    with exported_once():
        export_bundle(trained, path, draw_samples(trained.image, trained.text, trained.tokenizer))
    engine = Engine(path, device="cpu", threads=1)
    random = np.random.default_rng(0)
    rows = random.standard_normal((200, 24), dtype=np.float32)
    image = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    answer = torch_answer(
        trained, engine.prepare, image, "a small red cube", rows, 10, "cpu", half=False, compiled=False
    )
    terms = engine.compose(engine.encode_images([image]), engine.encode_texts(["a small red cube"]))
    assert answer().tolist() == ReferenceScorer(Rows.of(rows)).topk(terms, 10).rows[0].tolist()


def test_the_whole_check_with_bundles_that_were_brought(
    gpu: CapturingDevice,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of it but the cold start, whose fresh process finds no GPU: recorded, and the exit code says so."""
    from cir_bench.engine_check import __main__ as command

    monkeypatch.setattr(command, "missing_gpu", lambda: None)
    code, found = small_check(bundle, tmp_path, monkeypatch)
    assert code == 1
    steps_of = found["artemis-scenes-float16"]
    assert set(steps_of) == {
        *("open", "plans", "parity", "cache", "captured", "placements", "threads", "latency", "drift"),
        "cold_start",
    }
    assert set(found["artemis-scenes-int8"]) == {"open", "plans", "parity", "captured", "latency", "drift"}
    assert all(step["passed"] for step in found["artemis-scenes-int8"].values())
    failed = {name for name, step in steps_of.items() if not step["passed"]}
    assert failed == {"cold_start"} and "no NVIDIA driver" in steps_of["cold_start"]["error"]
    assert "worst cosine: open" in capsys.readouterr().out, "targets are those of the largest model"


def test_bundles_to_carry_are_of_every_precision(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exported_once: Once,
) -> None:
    """The committed model, as a machine with torch prepares it for one without."""
    from cir_bench.engine_check import __main__ as command
    from cir_bench.engine_check import models
    from cir_infer.bundle import Bundle

    monkeypatch.setattr(models, "_SEEDS", range(2000, 2032))
    asked = ["check", "--write-bundles", str(tmp_path / "carried"), "--only", "artemis-scenes"]
    monkeypatch.setattr(sys, "argv", asked)
    with exported_once():
        assert command.main() == 0
    manifests = {path.name: Bundle(path).manifest for path in (tmp_path / "carried").iterdir()}
    found = {name: (manifest.precision, manifest.int8_form) for name, manifest in manifests.items()}
    assert found == {
        "artemis-scenes-float32.cir": ("float32", None),
        "artemis-scenes-float16.cir": ("float16", None),
        "artemis-scenes-int8.cir": ("int8", "tensorrt"),
    }
    lowered = manifests["artemis-scenes-int8.cir"].parity["precision"]
    assert lowered["fidelity"]["cosine_worst"] >= 0.999 and lowered["calibration"]["source"] == "pictures"
