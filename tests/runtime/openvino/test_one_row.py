"""In lower precisions a picture by itself has a graph of its own: the same answers, opened as it is asked."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import BundleError, DeviceError
from cir_infer.extras import is_installed
from cir_infer.runtime import devices
from cir_infer.runtime.devices import open_graphs
from cir_infer.runtime.graph import Graph
from cir_infer.runtime.kept import graphs as keeping
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.openvino.one_row import OneOrMany, is_apart
from cir_infer.runtime.plan_policy import PlanPolicy
from tests.runtime.kept.bundled import FEEDS, Bundled, kept

if not is_installed("openvino"):
    pytest.skip("openvino is not installed (pip install 'cir-infer[openvino]')", allow_module_level=True)

from cir_infer.runtime.openvino.api import OpenVinoDevice
from cir_infer.runtime.openvino.backend import OpenVinoBackend

BATCH = FEEDS["image"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path / "graphs"))
    monkeypatch.setattr(keeping.load_kept, "__defaults__", (None, 0))
    return tmp_path / "graphs"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often forms for one row and for any number were made, and opened from what is kept."""
    counted: Counter[str] = Counter()

    def count(what: str) -> None:
        original = getattr(OpenVinoDevice, what)

        def counting(self: OpenVinoDevice, *args: Any) -> Any:
            counted[f"{what} {'one' if args[-1] else 'many'}"] += 1
            return original(self, *args)

        monkeypatch.setattr(OpenVinoDevice, what, counting)

    count("compile")
    count("reopen")
    return counted


def graph_of(bundled: Bundled, precision: str = "int8", name: str = "image") -> Graph:
    return open_graphs({name: bundled.stored}, "openvino", 1, PlanPolicy(precision=precision)).graphs[name]


def rows(graph: Graph, batch: Any) -> Any:
    return graph.run({"image": batch})["embedding"]


def test_both_forms_answer_alike(folder: Path) -> None:
    bundled = Bundled()
    graph = graph_of(bundled)
    expected = rows(OpenVinoBackend(1).load("image", bundled.read()), BATCH)
    assert len(BATCH) > 1
    np.testing.assert_allclose(rows(graph, BATCH), expected, 1e-6)
    for at in range(len(BATCH)):
        np.testing.assert_allclose(rows(graph, BATCH[at : at + 1]), expected[at : at + 1], 1e-6)
    assert rows(graph, BATCH[:0]).shape == (0, *expected.shape[1:])
    assert graph.inputs[0].shape[0] is None


def test_the_form_for_batches_waits_until_one_comes(folder: Path, opened: Counter[str]) -> None:
    bundled = Bundled()
    graph_of(bundled)
    assert opened == {"compile one": 1, "reopen one": 1}  # what is kept is tried
    rows(graph_of(bundled), BATCH)
    assert opened == {"compile one": 1, "reopen one": 2, "compile many": 1, "reopen many": 1}
    assert len(kept(folder)) == 2
    opened.clear()
    reads = bundled.reads
    graph = graph_of(bundled)
    rows(graph, BATCH[:1])
    rows(graph, BATCH[:0])
    assert opened == {"reopen one": 1}
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: rows(graph, BATCH), range(8)))
    assert all(np.array_equal(answer, answers[0]) for answer in answers)
    assert opened == {"reopen one": 1, "reopen many": 1}
    assert bundled.reads == reads


def test_what_is_read_ahead_is_the_form_for_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = Bundled()
    rows(graph_of(bundled), BATCH)
    rows(graph_of(bundled), BATCH)  # batches were the last to be opened
    ahead = ReadAhead({"image": bundled.stored._replace(rows=1)}, "openvino")

    def late(*_: Any) -> None:
        raise AssertionError("another file was guessed")

    monkeypatch.setattr("cir_infer.runtime.kept.ahead.read_graph", late)
    bundled.stored = bundled.stored._replace(found=lambda *at: ahead.take("image", *at))
    rows(graph_of(bundled), BATCH[:1])


def test_where_nothing_is_kept_each_is_made_once(
    monkeypatch: pytest.MonkeyPatch, opened: Counter[str]
) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", "off")
    graph = graph_of(Bundled())
    for _ in range(2):
        rows(graph, BATCH[:1])
        rows(graph, BATCH)
    assert opened == {"compile one": 1, "compile many": 1}


def test_a_form_that_cannot_be_opened_any_more_is_told(folder: Path) -> None:
    bundled = Bundled()
    one = OpenVinoBackend(1).one_row().load("image", bundled.read())

    def gone() -> Graph:
        raise BundleError("the bundle was replaced")

    graph = OneOrMany("image", one, gone)
    for _ in range(2):
        rows(graph, BATCH[:1])
        with pytest.raises(DeviceError, match=r"image graph cannot be opened for batches.*was replaced"):
            rows(graph, BATCH)


@pytest.mark.parametrize(
    ("device", "precision", "name"),
    [("openvino", "float32", "image"), ("openvino", "int8", "text"), ("cpu", "int8", "image")],
)
def test_other_graphs_have_one_form(device: str, precision: str, name: str) -> None:
    assert not is_apart(device, precision, name)
    assert is_apart("openvino", "int8", "image")
    assert is_apart("openvino", "bfloat16", "reference")


def test_warming_up_opens_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Counter[str]) -> None:
    from cir_infer import Engine
    from tests.bundles import write_tiny_bundle

    monkeypatch.setattr(devices, "is_apart", lambda device, precision, name: name == "image")
    monkeypatch.setattr("cir_infer.runtime.bundle_graphs.is_apart", devices.is_apart)
    path = write_tiny_bundle(tmp_path / "tiny.cir")
    with Engine(path, "openvino") as engine:
        engine.warm_up()
    opened.clear()
    with Engine(path, "openvino") as engine:
        engine.encode_images([np.zeros((32, 32, 3), np.uint8)])
        assert opened["reopen many"] == 1  # the text graph
        engine.warm_up()
        assert opened["reopen many"] == 2
