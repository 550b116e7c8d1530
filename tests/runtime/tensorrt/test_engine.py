"""Engines and searchers on TensorRT: the answers of the CPU, at one launch a query, for all systems."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.errors import BundleError, DeviceError, ScoringError, UsageError
from tests.bundles import write_explained_bundle, write_tiny_bundle
from tests.runtime.tensorrt.conftest import VERSIONS
from tests.runtime.tensorrt.gpu import CapturingDevice

TEXTS = ["is red", "more longer and blue", ["is green", "shorter"]]


def same_hits(got: Any, expected: Any) -> None:
    assert [hit.id for hit in got] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit.score for hit in got], [hit.score for hit in expected], atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_an_engine_gives_the_embeddings_of_the_cpu(
    gpu: CapturingDevice, bundle: Path, engine: Engine, pictures: list[Path]
) -> None:
    ours = Engine(bundle, device="tensorrt")
    assert ours.device == "tensorrt"
    rows = ours.encode_images(pictures[:5], batch_size=3)
    np.testing.assert_allclose(rows, engine.encode_images(pictures[:5]), atol=1e-6)
    texts = ours.encode_texts(TEXTS)
    np.testing.assert_allclose(texts, engine.encode_texts(TEXTS), atol=1e-6)
    terms, expected = ours.compose(rows[:3], texts), engine.compose(rows[:3], texts)
    np.testing.assert_allclose(terms.numerators, expected.numerators, atol=1e-6)
    assert ours.encode_images([]).shape == (0, 8)
    described = ours.describe()["backend"]
    assert set(described["plans"]) == {"image", "text", "compose"}
    assert described["plans"]["text"]["placement"]["chosen"] in ("cpu", "tensorrt")


@pytest.mark.parametrize("version", VERSIONS, indirect=True)
def test_a_query_is_one_launch_and_answers_as_the_cpu(
    gpu: CapturingDevice, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    for text in TEXTS:
        for picture in pictures[:3]:
            same_hits(ours.query(picture, text, k=5), searcher.query(picture, text, k=5))
    assert len(gpu.captured) == 1
    assert gpu.captured[0].launches == 9  # one to check the capture, eight queries after the first
    hit = ours.query(pictures[0], "is red", k=5)[2]
    same_hits(ours.query(hit, "is blue", k=5), searcher.query(hit, "is blue", k=5))
    assert len(gpu.captured) == 2


def test_streamed_rows_are_searched_under_one_lock(gpu: CapturingDevice, bundle: Path) -> None:
    """A chain has a stream and a lock of its own, and streamed rows pass through one set of buffers."""
    from cir_infer.scoring.cuda import CudaScorer
    from tests.scoring.cases import rows_of

    engine = Engine(bundle, device="tensorrt")
    rows = rows_of(np.random.default_rng(0).standard_normal((3000, 8)), "float16")
    resident, streamed = CudaScorer(rows, device=gpu), CudaScorer(rows, device=gpu, memory=1 << 13)
    assert not resident.streamed and streamed.streamed
    assert engine.chains(resident) is not None
    assert engine.chains(streamed) is None


def test_filters_and_batches_answer_as_the_cpu(
    gpu: CapturingDevice, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    for where in ({"colour": "red"}, {"colour": "blue"}, "price < 3", {"colour": "none"}):
        for _ in range(2):
            same_hits(
                ours.query(pictures[1], "is red", k=4, where=where, exclude=["sku-1"]),
                searcher.query(pictures[1], "is red", k=4, where=where, exclude=["sku-1"]),
            )
    batch = list(ours.query_batch(pictures[:7], ["is red"] * 7, k=3))
    for got, expected in zip(batch, searcher.query_batch(pictures[:7], ["is red"] * 7, k=3), strict=True):
        same_hits(got, expected)
    same_hits(ours.query(pictures[0], "is red", k=500), searcher.query(pictures[0], "is red", k=500))


@pytest.mark.parametrize("system", ["cosine", "separate", "features", "text-only", "image-only"])
def test_every_kind_of_system(
    gpu: CapturingDevice, system: str, tmp_path: Path, pictures: list[Path]
) -> None:
    bundle = write_tiny_bundle(tmp_path / "system.cir", system)
    cpu, ours = Engine(bundle, device="cpu", threads=1), Engine(bundle, device="tensorrt")
    random = np.random.default_rng(0)
    images: list[Any] = list(pictures)
    if system == "features":
        images = list(random.standard_normal((12, 12), dtype=np.float32))
    vectors = random.standard_normal((60, 8), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery = Gallery.from_arrays(
        tmp_path / "g.gallery", ids=[str(i) for i in range(60)], vectors=vectors, engine=cpu
    )
    image = None if system == "text-only" else images[0]
    text = None if system == "image-only" else "is red"
    expected = Searcher(cpu, gallery).query(image, text, k=6)
    searcher = Searcher(ours, gallery)
    for _ in range(3):
        same_hits(searcher.query(image, text, k=6), expected)
    assert gpu.captured[-1].launches == 3


def test_threads_share_a_searcher(
    gpu: CapturingDevice, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    jobs = [(pictures[i % 10], ["is red", "is blue", "more green"][i % 3], 3 + i % 4) for i in range(48)]
    expected = [searcher.query(picture, text, k=k) for picture, text, k in jobs]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda job: ours.query(job[0], job[1], k=job[2]), jobs))
    for got, wanted in zip(answers, expected, strict=True):
        same_hits(got, wanted)


def test_memory_is_constant_after_warm_up(
    gpu: CapturingDevice, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    ours.warm_up(k=5)
    before = (gpu.allocations, gpu.live_bytes, len(gpu.captured))
    for number in range(12):
        hit = ours.query(pictures[number], "is red", k=5)[0]
        ours.query(hit, "is blue", k=5)
    assert (gpu.allocations, gpu.live_bytes, len(gpu.captured)) == before


def test_all_memory_is_given_back(
    gpu: CapturingDevice, bundle: Path, gallery_path: Path, pictures: Any
) -> None:
    import gc
    import sys

    ours = Searcher(bundle, gallery_path, device="tensorrt")
    for k in range(1, 12):  # more shapes than chains are kept
        ours.query(pictures[0], "is red", k=k)
    ours.gallery.close()
    del ours
    gc.collect()
    assert gpu.live_bytes == 0
    assert sys.modules["tensorrt"].live_contexts == 0
    assert all(work.closed for work in gpu.captured)


def test_where_capturing_fails_the_eager_chain_answers(
    gpu: CapturingDevice,
    bundle: Path,
    searcher: Searcher,
    pictures: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    gpu._capturable = False
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    for _ in range(3):
        same_hits(ours.query(pictures[0], "is red"), searcher.query(pictures[0], "is red"))
    assert caplog.text.count("not replayed as CUDA graphs") == 1 and "901" in caplog.text


def test_a_replay_that_answers_otherwise_is_not_used(
    gpu: CapturingDevice,
    bundle: Path,
    searcher: Searcher,
    pictures: list[Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capture = CapturingDevice.capture

    def forgetful(self: CapturingDevice, stream: object, enqueue: Any) -> Any:
        work = capture(self, stream, enqueue)
        self.upload(0, np.empty(0, np.uint8), stream)
        work.steps[:] = [lambda: self._answer.fill(0)]
        return work

    # The replay writes zeros over the answer.
    host = CapturingDevice.allocate_host

    def remembered(self: CapturingDevice, nbytes: int) -> Any:
        memory = host(self, nbytes)
        self._answer = memory.array
        return memory

    monkeypatch.setattr(CapturingDevice, "allocate_host", remembered)
    monkeypatch.setattr(CapturingDevice, "capture", forgetful)
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    for _ in range(2):
        same_hits(ours.query(pictures[0], "is red"), searcher.query(pictures[0], "is red"))


def test_terms_that_are_not_finite_are_an_error(
    gpu: CapturingDevice, bundle: Path, gallery_path: Path
) -> None:
    ours = Searcher(bundle, gallery_path, device="tensorrt")
    chains = ours._scorer(ours.gallery.snapshot())[1]
    assert chains is not None
    broken = np.full(8, np.nan, np.float32)
    with pytest.raises(ScoringError, match="NaN or infinity"):
        chains.topk(None, broken, np.ones(6, np.float32), 5, None)
    ours.gallery.close()


def test_auto_takes_tensorrt_where_it_works(
    gpu: CapturingDevice, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cir_infer")
    assert Engine(bundle).device == "tensorrt"
    assert "device auto: taking tensorrt" in caplog.text


def test_auto_says_why_it_takes_the_cpu(
    gpu: CapturingDevice, bundle: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIR_FAKE_TENSORRT_FAULT", "out of memory")
    assert Engine(bundle).device == "cpu"
    assert "OutOfMemory" in caplog.text and "CUDAExecutionProvider" in caplog.text


def test_an_older_tensorrt_is_refused(
    gpu: CapturingDevice, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    import tensorrt

    from tests.runtime.tensorrt.conftest import forget_tensorrt

    forget_tensorrt()
    sys.modules["tensorrt"] = tensorrt
    monkeypatch.setattr(tensorrt, "__version__", "8.5.3")
    with pytest.raises(DeviceError, match=r"8\.5\.3 is too old; cir-infer needs 8\.6"):
        Engine(bundle, device="tensorrt")


def test_the_tensorrt_provider_of_onnx_runtime_is_refused_where_it_is_missing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cir_infer.runtime import devices

    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        Engine(bundle, device="ort-tensorrt")
    monkeypatch.setattr(devices, "missing_gpu", lambda: None)
    with pytest.raises(DeviceError, match=r"has no TensorrtExecutionProvider.*onnxruntime-gpu"):
        Engine(bundle, device="ort-tensorrt")


@pytest.mark.parametrize("device", ["cuda", "ort-tensorrt"])
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_is_judged_by_the_providers_that_it_has(
    device: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that lists providers which it cannot start falls back to the CPU and says nothing."""
    import onnxruntime

    from cir_infer.runtime import devices

    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setenv("CIR_PLAN_CACHE", str(tmp_path / "plans"))
    monkeypatch.setattr(devices, "missing_gpu", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(DeviceError, match=r"could not start \w+ExecutionProvider for the \w+ graph"):
        Engine(bundle, device=device)


@pytest.mark.parametrize("device", ["cuda", "ort-tensorrt"])
def test_the_cuda_provider_computes_float32_in_float32(
    device: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As plans do: by itself it takes TF32 from Ampere on, and rows were others than the processor's."""
    import onnxruntime

    from cir_infer.runtime import devices

    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    asked: list[Any] = []
    monkeypatch.setenv("CIR_PLAN_CACHE", str(tmp_path / "plans"))
    monkeypatch.setattr(devices, "missing_gpu", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)

    def session(*_: Any, providers: Any) -> Any:
        asked.extend(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    with pytest.raises(BundleError, match="no GPU here"):
        Engine(bundle, device=device)
    assert ("CUDAExecutionProvider", {"use_tf32": "0"}) in asked


def test_engines_with_tf32_are_not_taken_where_the_variable_forbids_it(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime names them by graph and GPU: one that was kept before the variable was set was taken."""
    import onnxruntime

    from cir_infer.runtime import devices

    folders: list[tuple[str, str]] = []
    monkeypatch.setenv("CIR_PLAN_CACHE", str(tmp_path / "plans"))
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    monkeypatch.setattr(devices, "missing_gpu", lambda: None)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])

    def session(*_: Any, providers: Any) -> Any:
        options = providers[0][1]
        folders.append((options["trt_engine_cache_path"], options["trt_timing_cache_path"]))
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    for value in (None, "1", "0", "0"):
        if value is not None:
            monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
        with pytest.raises(BundleError, match="no GPU here"):
            Engine(bundle, device="ort-tensorrt")
    with_it, still, without, again = folders
    assert with_it == still and without == again
    assert not set(with_it) & set(without)
    assert all(Path(folder).is_dir() for pair in folders for folder in pair)


def test_words_that_are_no_policy_are_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"'sometimes'.*build, onnxruntime, refuse"):
        Engine(bundle, device="cpu", missing_plan="sometimes")
    monkeypatch.setenv("CIR_MISSING_PLAN", "never")
    with pytest.raises(UsageError, match="'never'"):
        Engine(bundle, device="cpu")


def test_a_balanced_query_goes_step_by_step_and_answers_as_the_cpu(
    gpu: CapturingDevice, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    balance = {"implicit_similarity": 0.25, "explicit_matching": -3.0}
    for reference in (pictures[0], searcher.item("sku-4")):
        got = ours.query(reference, "is red", k=6, balance=balance)
        same_hits(got, searcher.query(reference, "is red", k=6, balance=balance))
        assert got.balance == balance
        same_hits(ours.query(reference, "is red", k=6), searcher.query(reference, "is red", k=6))


def test_explanations_need_no_plan(gpu: CapturingDevice, tmp_path: Path, pictures: list[Path]) -> None:
    bundle = write_explained_bundle(tmp_path / "explained.cir")
    engine = Engine(bundle, device="tensorrt")
    with Gallery.create(tmp_path / "explained.gallery", engine) as gallery:
        gallery.add(pictures[:6], ids=[str(i) for i in range(6)])
        hits = Searcher(engine, gallery).query(pictures[0], "is red", k=3)
        for hit, found in zip(hits, hits.explain_all(), strict=True):
            for name, heat in found.terms.items():
                assert heat.map.sum(dtype=float) + heat.rest == pytest.approx(hit.terms[name], abs=1e-4)
    assert set(engine.describe()["backend"]["plans"]) == {"image", "text", "compose"}
