"""Queries as one CUDA graph through the real device: capture, page-locked staging, two streams, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cir_infer import Searcher
from tests.emulation.driver.conftest import missing
from tests.runtime.tensorrt.test_engine import TEXTS, same_hits
from tests.scoring.cases import check_topk, random_terms, rows_of

if missing():
    pytest.skip(missing(), allow_module_level=True)


def chains_of(searcher: Searcher) -> Any:
    chains = searcher._scorer(searcher.gallery.snapshot())[1]
    assert chains is not None
    return chains


def test_queries_answer_as_the_cpu_and_are_captured(
    real_device: Any, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    for text in TEXTS:
        for picture in pictures[:4]:
            same_hits(ours.query(picture, text, k=5), searcher.query(picture, text, k=5))
    hit = ours.query(pictures[0], "is red", k=5)[2]
    for text in ("is blue", "is red"):
        same_hits(ours.query(hit, text, k=5), searcher.query(hit, text, k=5))
    for where in ({"colour": "red"}, {"colour": "blue"}, "price < 3", {"colour": "none"}):
        for _ in range(2):
            same_hits(
                ours.query(pictures[1], "is red", k=4, where=where, exclude=["sku-1"]),
                searcher.query(pictures[1], "is red", k=4, where=where, exclude=["sku-1"]),
            )
    same_hits(ours.query(pictures[0], "is red", k=500), searcher.query(pictures[0], "is red", k=500))
    found = chains_of(ours).describe()["chains"]
    assert len(found) >= 4 and all(chain["cuda_graph"] for chain in found), found
    batch = list(ours.query_batch(pictures[:7], ["is red"] * 7, k=3))
    for got, wanted in zip(batch, searcher.query_batch(pictures[:7], ["is red"] * 7, k=3), strict=True):
        same_hits(got, wanted)


def test_eight_threads_share_a_searcher_while_scorers_come_and_go(
    real_device: Any, bundle: Path, searcher: Searcher, pictures: list[Path]
) -> None:
    from cir_infer.scoring.cuda import CudaScorer

    ours = Searcher(bundle, searcher.gallery, device="tensorrt")
    # Many k: captures go on while others query.
    jobs = [(pictures[i % 10], TEXTS[i % 2], 3 + i % 11) for i in range(80)]
    expected = [searcher.query(picture, text, k=k) for picture, text, k in jobs]
    over = threading.Event()
    wrong: list[BaseException] = []

    def score() -> None:
        random = np.random.default_rng(0)
        rows = rows_of(random.standard_normal((200, 16)), "float16")
        terms = random_terms(random, 1, 2, 16, True)
        try:
            while not over.is_set():
                scorer = CudaScorer(rows)
                check_topk(scorer.topk(terms, 5), terms, rows, 5)
                scorer.close()
        except BaseException as error:
            wrong.append(error)

    beside = threading.Thread(target=score)
    beside.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda job: ours.query(job[0], job[1], k=job[2]), jobs))
    finally:
        over.set()
        beside.join()
    for got, wanted in zip(answers, expected, strict=True):
        same_hits(got, wanted)
    assert wrong == []
    assert all(chain["cuda_graph"] for chain in chains_of(ours).describe()["chains"])


def test_a_scorer_may_be_made_and_asked_while_another_thread_captures(real_device: Any) -> None:
    from cir_infer.scoring.cuda import CudaScorer

    random = np.random.default_rng(0)
    rows = rows_of(random.standard_normal((300, 32)), "float16")
    terms = random_terms(random, 2, 2, 32, True)
    wrong: list[BaseException] = []

    def score() -> None:
        try:
            with CudaScorer(rows) as scorer:
                check_topk(scorer.topk(terms, 5), terms, rows, 5)
        except BaseException as error:
            wrong.append(error)

    with real_device.active():
        stream = real_device.new_stream()
        memory = real_device.allocate(16)

        def enqueue() -> None:
            real_device.zero(memory.address, 16, stream)
            thread = threading.Thread(target=score)
            thread.start()
            thread.join()

        graph = real_device.capture(stream, enqueue)
        graph.launch()
        real_device.synchronize(stream)
        graph.close()
        memory.free()
    assert wrong == []


def test_all_memory_is_given_back(
    real_device: Any, bundle: Path, gallery_path: Path, pictures: list[Path]
) -> None:
    import gc
    import sys

    def free() -> int:
        with real_device.active():
            return int(real_device.free_bytes())

    before = free()
    ours = Searcher(bundle, gallery_path, device="tensorrt")
    for k in range(1, 12):  # more shapes than chains are kept
        ours.query(pictures[0], "is red", k=k)
    warm = free()
    for k in range(1, 12):
        ours.query(pictures[1], "is blue", k=k)
    assert warm == free() < before
    ours.gallery.close()
    del ours
    gc.collect()
    assert free() == before
    assert sys.modules["tensorrt"].live_contexts == 0


def test_a_streamed_search_is_captured_with_its_copies(real_device: Any) -> None:
    """The copies fork off to a stream of their own and join again; the graph reads the page-locked rows."""
    from cir_infer.scoring.cuda import CudaScorer

    random = np.random.default_rng(0)
    rows = rows_of(random.standard_normal((3000, 32)), "float16")
    scorer = CudaScorer(rows, memory=1 << 14)
    assert "streamed" in scorer.name
    with real_device.active():
        stream = real_device.new_stream()
        search = scorer.prepare(2, 2, True, 20)
        graph = real_device.capture(stream, lambda: search.launch(stream))
        for _ in range(3):
            terms = random_terms(random, 2, 2, 32, True)
            real_device.upload(search.numerators, terms.numerators, stream)
            real_device.upload(search.weights, terms.weights, stream)
            for _ in range(2):
                graph.launch()
            real_device.synchronize(stream)
            check_topk(search.result(), terms, rows, 20)
        graph.close()
        search.close()
    scorer.close()


def test_streamed_rows_are_searched_under_one_lock(real_device: Any, bundle: Path) -> None:
    """A chain of its own stream would read buffers that a batch of another thread fills."""
    from cir_infer import Engine
    from cir_infer.scoring.cuda import CudaScorer

    engine = Engine(bundle, device="tensorrt")
    random = np.random.default_rng(0)
    rows = rows_of(random.standard_normal((3000, engine.manifest.embedding_dim)), "float16")
    resident, streamed = CudaScorer(rows), CudaScorer(rows, memory=1 << 15)
    assert not resident.streamed and streamed.streamed
    assert engine.chains(resident) is not None
    assert engine.chains(streamed) is None
    jobs = [random_terms(random, 1 + 7 * (i % 2), 2, rows.dimension, True) for i in range(16)]
    with ThreadPoolExecutor(4) as threads:
        for terms, found in zip(jobs, threads.map(lambda terms: streamed.topk(terms, 9), jobs), strict=True):
            check_topk(found, terms, rows, 9)
    resident.close()
    streamed.close()
    engine.close()


def test_garbage_that_holds_memory_does_not_break_a_capture(real_device: Any) -> None:
    """Python would collect it anywhere, and to free memory is refused in the thread that captures."""
    import gc

    from cir_infer.scoring.cuda import CudaScorer

    scorer = CudaScorer(rows_of(np.ones((10, 8)), "float16"))
    before = gc.get_threshold()
    with real_device.active():
        stream, memory = real_device.new_stream(), real_device.allocate(16)
        free = real_device.free_bytes()

        def enqueue() -> None:
            nonlocal scorer
            cycle: list[Any] = [scorer]
            cycle.append(cycle)
            del scorer, cycle
            gc.set_threshold(1, 1, 1)
            assert len([[number] for number in range(1000)]) == 1000
            real_device.zero(memory.address, 16, stream)

        try:
            graph = real_device.capture(stream, enqueue)
        finally:
            gc.set_threshold(*before)
        graph.launch()
        real_device.synchronize(stream)
        gc.collect()
        assert real_device.free_bytes() > free
        graph.close()
        memory.free()
