"""A compose graph in two parts: the same numbers as the whole, whatever depends on what; else it is whole."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from cir_infer import Engine, Searcher
from cir_infer.bundle.model import Model
from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.processes.threads import Threads
from cir_infer.runtime import compose_parts
from cir_infer.runtime.compose_parts import Begun, ComposeGraph, Parts, parts_of, text_apart
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.kept.graphs import load_kept
from cir_infer.runtime.kept.names import StoredGraph
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.samples import sample_feeds
from cir_infer.scoring.contract import Scorer, TopK
from tests.bundles import DIM, HIDDEN, GraphBuilder, artemis_graph, cosine_graph, write_tiny_bundle

INPUTS = {"reference": ("f32", ["n", DIM]), "text": ("f32", ["n", HIDDEN])}
OUTPUTS = {"numerators": ("f32", ["n", 1, DIM])}


def composing(*nodes: tuple[Any, ...], outputs: dict[str, Any] = OUTPUTS) -> bytes:
    """A graph with the weights `w` (text to row), a few numbers, and some nodes."""
    g = GraphBuilder()
    g.constant("w", np.random.default_rng(5).normal(size=(HIDDEN, DIM)))
    g.constant("one", [1], np.int64)
    g.constant("half", 0.5)
    for op, inputs, output, *more in nodes:
        g.add(op, inputs.split(), output, **(more[0] if more else {}))
    return g.model(INPUTS, outputs)


def whole(model: bytes) -> Graph:
    """As ONNX Runtime runs any other graph."""
    return OnnxBackend("cpu", 1).load("image", Model(model))


def parted(model: bytes) -> Parts | None:
    return parts_of(Model(model), whole(model), lambda part: whole(part.data), worth=1)


PARTS = {
    "two terms, an output of the text alone": artemis_graph(),
    "one sum": cosine_graph(),
    "the rest reads the text too": composing(
        ("MatMul", "text w", "m"),
        ("ReduceSum", "text one", "total", {"keepdims": 1}),
        ("Mul", "reference total", "scaled"),
        ("MatMul", "text w", "m_again"),
        ("Add", "scaled m", "sum"),
        ("ReduceMax", "text", "largest", {"axes": [1], "keepdims": 1}),
        ("Mul", "sum largest", "product"),
        ("Unsqueeze", "product one", "numerators"),
    ),
    "a number that both parts compute": composing(
        ("Constant", "", "third", {"value_float": 1 / 3}),
        ("Exp", "third", "root"),
        ("MatMul", "text w", "m"),
        ("Mul", "m root", "of_text"),
        ("Mul", "reference root", "of_image"),
        ("Add", "of_text of_image", "sum"),
        ("Unsqueeze", "sum one", "numerators"),
    ),
    "a node without use": composing(
        ("MatMul", "text w", "m"),
        ("Exp", "m", "nobodys"),
        ("Add", "m reference", "sum"),
        ("Unsqueeze", "sum one", "numerators"),
    ),
}


@pytest.mark.parametrize("model", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("rows", [1, 2, 3, 40])
def test_parts_compute_what_the_whole_does(model: bytes, rows: int) -> None:
    expected, parts = whole(model), parted(model)
    assert parts is not None
    feeds = sample_feeds(expected.inputs, rows, 8, seed=rows)
    values = parts.begin(feeds["text"])
    assert values.keys().isdisjoint(feeds)
    right, found = expected.run(feeds), parts.finish(feeds, values)
    assert found.keys() == right.keys()
    for name, value in right.items():
        assert np.array_equal(value, found[name]), name
    last = Begun(feeds["text"], parts, values).take([rows - 1])
    alone = {name: value[rows - 1 :] for name, value in feeds.items()}
    assert np.array_equal(last.text, alone["text"])
    for name, value in expected.run(alone).items():
        np.testing.assert_allclose(parts.finish(alone, last.values)[name], value, rtol=1e-5, atol=1e-7)


def with_a_branch() -> bytes:
    """A node holds a graph, which reads a value without naming it as an input."""
    model = helper.make_model(helper.make_graph([], "", [], []))
    model.ParseFromString(
        composing(
            ("MatMul", "text w", "m"),
            ("Mul", "m half", "halved"),
            ("Add", "halved reference", "sum"),
            ("Add", "sum reference", "more"),
            ("Unsqueeze", "more one", "numerators"),
        )
    )
    yes = helper.make_node(
        "Constant", [], ["yes"], value=helper.make_tensor("", TensorProto.BOOL, [], [True])
    )
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["m"], ["out"])], name, [], [out])
        for name, op in (("then", "Exp"), ("else", "Neg"))
    }
    chosen = helper.make_node("If", ["yes"], ["chosen"], **branches)
    model.graph.node[3].input[1] = "chosen"
    model.graph.node.insert(1, chosen)
    model.graph.node.insert(1, yes)
    return bytes(model.SerializeToString())


def with_a_default(name: str, length: int) -> bytes:
    """What a query gives is stored in the graph, too, so that backends do not ask for it."""
    model = helper.make_model(helper.make_graph([], "", [], []))
    model.ParseFromString(cosine_graph())
    model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [1, length], [0.5] * length))
    return bytes(model.SerializeToString())


WHOLE = {
    "a text with a default": with_a_default("text", HIDDEN),
    "a reference with a default": with_a_default("reference", DIM),
    "no text": cosine_graph(text=False),
    "no reference": cosine_graph(reference=False),
    "a graph in a node": with_a_branch(),
    "nothing of the text alone": composing(
        ("Concat", "reference text", "both", {"axis": 1}),
        ("ReduceSum", "both one", "total", {"keepdims": 1}),
        ("Mul", "reference total", "sum"),
        ("Unsqueeze", "sum one", "numerators"),
    ),
    "nothing of the reference": composing(
        ("MatMul", "text w", "m"),
        ("Identity", "reference", "nobodys"),
        ("Unsqueeze", "m one", "numerators"),
    ),
    "numbers that are no float32 between": composing(
        ("MatMul", "text w", "m"),
        ("Greater", "m half", "above"),
        ("Where", "above reference m", "sum"),
        ("Unsqueeze", "sum one", "numerators"),
    ),
    "one row for all texts between": composing(
        ("MatMul", "text w", "m"),
        ("ReduceMean", "m", "mean", {"axes": [0], "keepdims": 1}),
        ("Add", "mean reference", "sum"),
        ("Unsqueeze", "sum one", "numerators"),
    ),
}


@pytest.mark.parametrize("model", WHOLE.values(), ids=WHOLE)
def test_what_cannot_be_told_apart_runs_as_a_whole(model: bytes) -> None:
    assert parted(model) is None


def test_several_rows_for_a_text_between_the_parts_are_seen_before_a_query_is() -> None:
    g = GraphBuilder()
    g.constant("w", np.random.default_rng(5).normal(size=(HIDDEN, DIM)))
    g.constant("halves", [-1, DIM // 2], np.int64)
    g.constant("rows", [-1, DIM], np.int64)
    g.constant("one", [1], np.int64)
    g.add("Reshape", [g.add("MatMul", ["text", "w"], "m"), "halves"], "two_for_each")
    g.add("Reshape", ["reference", "halves"], "two_of_each")
    g.add("Reshape", [g.add("Add", ["two_for_each", "two_of_each"], "sum"), "rows"], "joined")
    g.add("Unsqueeze", ["joined", "one"], "numerators")
    assert parted(g.model(INPUTS, OUTPUTS)) is None


def test_parts_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = Parts.finish

    def wrong(self: Parts, feeds: Any, values: Any) -> dict[str, Array]:
        return {
            name: np.nextafter(value, np.float32(9)) for name, value in finish(self, feeds, values).items()
        }

    monkeypatch.setattr(Parts, "finish", wrong)
    assert parted(artemis_graph()) is None


def test_without_memory_for_the_parts_a_query_is_composed_as_a_whole() -> None:
    """They are a shortcut: the query for which they were made ended in MemoryError."""
    model = artemis_graph()

    def load(_: Model) -> Graph:
        raise MemoryError

    assert parts_of(Model(model), whole(model), load, worth=1) is None


def test_few_weights_are_not_told_apart() -> None:
    apart = text_apart(Model(artemis_graph()), 1)
    assert apart is not None
    assert text_apart(Model(artemis_graph()), apart.weights) is not None
    assert text_apart(Model(artemis_graph()), apart.weights + 1) is None
    assert text_apart(Model(artemis_graph())) is None


def test_while_a_thread_makes_the_parts_others_compose_as_a_whole() -> None:
    model = artemis_graph()
    made: list[int] = []
    making, go_on = threading.Event(), threading.Event()

    def make() -> Parts | None:
        made.append(1)
        making.set()
        assert go_on.wait(30)
        return parted(model)

    graph = ComposeGraph(whole(model), make)
    feeds = sample_feeds(graph.inputs, 2, 8)
    assert graph.begin(feeds["text"]).parts is None and not made
    threads = Threads(1)
    first = threads.submit(graph.begin, feeds["text"])
    assert making.wait(30)
    early = [graph.begin(feeds["text"]) for _ in range(3)]
    go_on.set()
    late = [first.result(), graph.begin(feeds["text"])]
    threads.close()
    assert made == [1] and [begun.parts for begun in early] == [None] * 3
    assert late[0].parts is late[1].parts is not None
    right = whole(model).run(feeds)
    for begun in (*early, *late):
        for name, value in graph.finish(feeds, begun).items():
            assert np.array_equal(value, right[name])


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few weights there are, graphs are told apart."""
    monkeypatch.setattr(compose_parts, "WORTH", 1)
    monkeypatch.setattr(compose_parts, "parts_of", partial(parts_of, worth=1))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts were begun to be composed, call by call."""
    calls: list[int] = []
    begin = Parts.begin

    def counted(self: Parts, text: Array) -> dict[str, Array]:
        calls.append(len(text))
        return begin(self, text)

    monkeypatch.setattr(Parts, "begin", counted)
    return calls


def test_a_kept_graph_is_told_apart_as_it_was(
    always: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIR_GRAPH_CACHE", str(tmp_path))
    model, reads = artemis_graph(), []

    def read() -> Model:
        reads.append(1)
        return Model(model)

    stored = StoredGraph(hashlib.sha256(model).hexdigest(), len(model), None, read)
    feeds = sample_feeds(whole(model).inputs, 5, 8)
    right = whole(model).run(feeds)
    for _ in range(2):
        graph = load_kept(OnnxBackend("cpu", 1), "compose", stored, least=0)
        assert isinstance(graph, ComposeGraph)
        for number in range(3):
            begun = graph.begin(feeds["text"])
            assert (begun.parts is None) == (number == 0)
            for name, value in graph.finish(feeds, begun).items():
                assert np.array_equal(value, right[name])
    assert len(reads) == 1


def test_answers_are_the_same_and_a_refined_hit_takes_one_run(
    tmp_path: Path, pictures: list[Path], begun: list[int], request: pytest.FixtureRequest
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    with Engine(bundle, device="cpu") as engine, Gallery.create(tmp_path / "tiny.gallery", engine) as gallery:
        gallery.add(pictures, ids=[path.stem for path in pictures])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    texts = ["is red", "is longer and blue", "is green", "more blue"]

    def asked() -> list[Any]:
        with Searcher(bundle, device="cpu") as searcher:
            searcher.warm_up()
            begun.clear()
            first = searcher.query(pictures[0], texts[0], k=3)
            one = list(begun)
            refined = searcher.query(first[1], texts[1], k=3)
            assert begun == one
            images = [pictures[1], broken, first[0], pictures[2]]
            batch = list(searcher.query_batch(images, texts, k=3, errors="return"))
            return [
                [(hit.id, hit.score, hit.terms) for hit in hits]
                if not isinstance(hits, Exception)
                else str(hits)
                for hits in (first, refined, *batch)
            ]

    expected = asked()
    assert not begun
    request.getfixturevalue("always")
    assert asked() == expected
    assert begun == [1, 4]


def test_texts_that_another_engine_began_are_composed_from_the_start(
    always: None, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[Parts] = []
    finish = Parts.finish

    def seen(self: Parts, feeds: Any, values: Any) -> dict[str, Array]:
        finished.append(self)
        return finish(self, feeds, values)

    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    with Engine(bundle, device="cpu") as engine, Engine(bundle, device="cpu") as other:
        rows, text = engine.encode_images(pictures[:2]), engine.encode_texts(["is red", "is blue"])
        right = engine.compose(rows, text)
        engine.warm_up()
        other.warm_up()
        monkeypatch.setattr(Parts, "finish", seen)
        for begun in (engine.begin(text), other.begin(text), Begun(text)):
            found = engine.compose(rows, begun)
            assert np.array_equal(found.numerators, right.numerators)
            assert right.weights is not None and found.weights is not None
            assert np.array_equal(found.weights, right.weights)
        assert finished == [engine.begin(text).parts] != [None]
        with pytest.raises(UsageError, match=r"text is float32 \(2, 5\); expected float32 \(n, 6\)"):
            engine.begin(text[:, :5])
        with pytest.raises(UsageError, match="one for each"):
            engine.compose(rows[:1], engine.begin(text))


def test_what_composes_on_its_own_device_is_given_the_embedding(
    always: None, tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "tiny.cir")
    with Engine(bundle, device="cpu") as engine, Gallery.create(tmp_path / "tiny.gallery", engine) as gallery:
        gallery.add(pictures, ids=[path.stem for path in pictures])

    class InOneLaunch:
        """Stands for a GPU that runs graphs and scorer one after the other."""

        def __init__(self, scorer: Scorer) -> None:
            self._scorer = scorer

        def topk(self, image: Any, row: Any, text: Any, k: int, allow: Any = None) -> TopK:
            reference = row if image is None else searcher.engine.encode_prepared(image[None])[0]
            return self._scorer.topk(searcher.engine.compose(reference[None], text[None]), k, allow)

    def asked() -> list[Any]:
        first = searcher.query(pictures[0], "is red", k=3)
        return [first, searcher.query(first[1], "is blue", k=3), searcher.query(pictures[2], "is red", k=2)]

    with Searcher(bundle, device="cpu") as searcher:
        searcher.warm_up()
        expected = asked()
    with Searcher(bundle, device="cpu") as searcher:
        searcher.engine.warm_up()
        monkeypatch.setattr(searcher.engine, "chains", InOneLaunch)
        assert asked() == expected
