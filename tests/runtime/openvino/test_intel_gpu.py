"""Encoders of images on an Intel GPU, for which OpenVINO's processor stands here: one image at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.errors import DeviceError
from cir_infer.extras import is_installed
from cir_infer.runtime.samples import sample_feeds
from tests.bundles import SIDE, write_explained_bundle, write_tiny_bundle
from tests.runtime.kept.bundled import Bundled, kept

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)

from cir_infer.runtime.openvino import api
from cir_infer.runtime.openvino import backend as backends
from cir_infer.runtime.openvino.backend import OpenVinoBackend, OpenVinoGraph

SYSTEMS = ("artemis", "cosine", "separate", "features", "text-only", "image-only", "tokens")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor in the GPU's place."""
    monkeypatch.setitem(backends.PLACES, "openvino-gpu", "CPU")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_graph_answers_as_on_onnx_runtime(system: str, tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.cir", system)
    with Engine(path, "cpu") as reference, Engine(path, "openvino-gpu") as found:
        assert found.device == "openvino-gpu" and "gpu" in found.describe()["backend"]
        for name, graph in reference._graphs.items():
            other = found._graphs[name]
            reads_images_alone = [tensor.name for tensor in graph.inputs] == ["image"]
            assert (isinstance(other, OpenVinoGraph) and other.on_gpu) == reads_images_alone
            assert other.inputs == graph.inputs
            assert [(t.name, t.dtype) for t in other.outputs] == [(t.name, t.dtype) for t in graph.outputs]
            for rows, tokens in ((1, 1), (3, 7), (5, 64)):
                feeds = sample_feeds(graph.inputs, rows, tokens, seed=rows)
                expected, given = graph.run(feeds), other.run(feeds)
                for output, value in expected.items():
                    np.testing.assert_allclose(given[output], value, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("gpu")
def test_a_search_and_its_explanation(tmp_path: Path) -> None:
    path = write_explained_bundle(tmp_path / "explained.cir")
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (9, SIDE, SIDE, 3), np.uint8)
    with Engine(path, "openvino-gpu") as engine:
        assert engine.encode_images([]).shape == (0, engine.manifest.embedding_dim)
        rows = engine.encode_images(list(pictures))
        with Gallery.create(tmp_path / "some.gallery", engine=engine) as gallery:
            gallery.add_vectors(ids=[str(n) for n in range(9)], vectors=rows)
        answers = []
        for device in ("cpu", "openvino-gpu"):
            with Searcher(path, tmp_path / "some.gallery", device=device) as searcher:
                hits = searcher.query(pictures[3], "is red", k=4)
                told = hits.explain(0, image=pictures[int(hits[0].id)])
                assert told.method == "shares"
                assert abs(told.score - hits[0].score) < 1e-4
                answers.append([hit.id for hit in hits])
        assert answers[0] == answers[1]


@pytest.mark.usefixtures("gpu")
def test_threads_share_a_graph(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.cir", "artemis")
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (n % 5 + 1, SIDE, SIDE, 3), np.uint8) for n in range(20)]
    with Engine(path, "openvino-gpu") as engine:
        right = [engine.encode_prepared(batch) for batch in batches]
        wrong: list[int] = []

        def run(start: int) -> None:
            for number in range(start, len(batches), 2):
                if not np.array_equal(engine.encode_prepared(batches[number]), right[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=run, args=(n % 2,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


class Counted:
    """A request that tells how many are under way."""

    under_way = 0
    most = 0

    def __init__(self, request: Any) -> None:
        self._request = request

    def start_async(self, *given: Any, **named: Any) -> None:
        Counted.under_way += 1
        Counted.most = max(Counted.most, Counted.under_way)
        self._request.start_async(*given, **named)

    def wait(self) -> None:
        self._request.wait()
        Counted.under_way -= 1

    @property
    def output_tensors(self) -> Any:
        return self._request.output_tensors


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("count", [1, 2, 3, 33])
def test_the_next_picture_is_under_way_while_one_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.cir", "artemis")
    batch = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    take = api.Requests._take

    def counted(self: api.Requests) -> Counted:
        request = take(self)
        return request if isinstance(request, Counted) else Counted(request)

    monkeypatch.setattr(api.Requests, "_take", counted)
    monkeypatch.setattr(Counted, "most", 0)
    with Engine(path, "openvino-gpu") as engine:
        found = engine.encode_prepared(batch)
        alone = [engine.encode_prepared(picture[None])[0] for picture in batch]
    assert np.array_equal(found, alone)
    assert Counted.most >= min(count, 2)
    assert Counted.under_way == 0


class Failing:
    """A request of which the third run fails."""

    def __init__(self, request: Any, runs: list[int]) -> None:
        self._request, self._runs, self._fails = request, runs, False

    def start_async(self, *given: Any, **named: Any) -> None:
        self._runs.append(1)
        self._fails = len(self._runs) == 3
        self._request.start_async(*given, **named)

    def wait(self) -> None:
        self._request.wait()
        if self._fails:
            raise RuntimeError("the third one fails")

    @property
    def output_tensors(self) -> Any:
        return self._request.output_tensors


@pytest.mark.usefixtures("gpu")
def test_after_a_failed_run_the_next_one_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_bundle(tmp_path / "tiny.cir", "artemis")
    batch = np.random.default_rng(0).integers(0, 256, (7, SIDE, SIDE, 3), np.uint8)
    with Engine(path, "openvino-gpu") as engine:
        right = engine.encode_prepared(batch)
        runs: list[int] = []
        take = api.Requests._take
        monkeypatch.setattr(api.Requests, "_take", lambda self: Failing(take(self), runs))
        with pytest.raises(DeviceError, match="the third one fails"):
            engine.encode_prepared(batch)
        monkeypatch.setattr(api.Requests, "_take", take)
        assert np.array_equal(engine.encode_prepared(batch), right)


@pytest.mark.usefixtures("gpu")
def test_what_was_compiled_is_kept_apart_from_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    assert Bundled(backend=lambda: OpenVinoBackend(1)).answers()
    bundled = Bundled(backend=lambda: OpenVinoBackend(1, device="openvino-gpu"))
    assert bundled.answers()
    assert len(kept(tmp_path / "graphs")) == 2
    assert bundled.answers()
    assert bundled.reads == 1


def test_where_there_is_none_it_says_what_to_do(bundle: Path) -> None:
    if any(name.startswith("GPU") for name in api.ov.Core().available_devices):
        pytest.skip("this machine has an Intel GPU")
    with pytest.raises(DeviceError, match="cannot use an Intel GPU: there is none") as told:
        Engine(bundle, "openvino-gpu")
    assert "install Intel's driver" in str(told.value)
    assert len(str(told.value)) < 300
