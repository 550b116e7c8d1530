"""The recurrent kernel on a real GPU through PyCUDA, for `make gpu-check`; skipped where there is none."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import DeviceError
from cir_infer.gpu.context import open_device
from cir_infer.gpu.device import Device
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.scoring.cuda import CudaScorer
from tests.gpu.recurrent_checks import check_texts, random_feeds, random_text
from tests.scoring.cases import check_topk, random_terms, rows_of


def opened() -> Device | str:
    try:
        device = open_device()
        with device.active():
            device.cooperative("encode_gru")
    except DeviceError as error:
        return str(error)
    return device


GPU = opened()
if isinstance(GPU, str):
    pytest.skip(GPU, allow_module_level=True)

SMALL: list[dict[str, Any]] = [
    {"kind": "gru", "directions": 2, "hidden": 24, "width": 10},
    {"kind": "gru", "directions": 1, "hidden": 77, "width": 31, "over_time": True, "out": 9},
    {"kind": "lstm", "directions": 1, "hidden": 50, "width": 33, "out": 20},
    {"kind": "lstm", "directions": 2, "hidden": 1, "width": 1, "unit": False},
]
PAPERS: list[dict[str, Any]] = [
    {"kind": "gru", "directions": 2, "hidden": 256, "width": 300},
    {"kind": "lstm", "directions": 1, "hidden": 1024, "width": 300, "over_time": True, "out": 512},
    {"kind": "lstm", "directions": 1, "hidden": 512, "width": 512, "out": 512, "unit": False},
    {"kind": "gru", "directions": 1, "hidden": 1024, "width": 768, "unit": False},
    {"kind": "lstm", "directions": 2, "hidden": 1501, "width": 299, "over_time": True},
]


@pytest.mark.parametrize("sizes", SMALL)
def test_small_layers(sizes: dict[str, Any]) -> None:
    check_texts(GPU, random_text(**sizes), [1, 2, 3, 7])


@pytest.mark.parametrize("sizes", PAPERS)
def test_the_papers_layers_at_every_length(sizes: dict[str, Any]) -> None:
    check_texts(GPU, random_text(**sizes), [*range(1, 21), 77], again=3)


def test_the_longest_texts() -> None:
    check_texts(GPU, random_text(**PAPERS[0]), [512, 511, 1])


def test_thousands_of_texts_give_the_same_bits() -> None:
    check_texts(GPU, random_text(**PAPERS[0]), [20, 1, 8, 33], again=1500)


def test_encoders_and_a_scorer_in_several_threads_at_once() -> None:
    """Blocks that wait share the GPU with others that wait, and with kernels that do not."""
    text = random_text(**PAPERS[0])
    feeds = random_feeds(text, [5, 20, 11])
    encoders = [RecurrentEncoder(text, GPU, 64) for _ in range(3)]
    expected = encoders[0].run(feeds)["text"]
    rng = np.random.default_rng(0)
    rows = rows_of(rng.standard_normal((50_000, 256)), "float16")
    terms = random_terms(rng, 1, 2, 256, True)
    scorer = CudaScorer(rows)
    wrong: list[Exception | AssertionError] = []

    def encode(encoder: RecurrentEncoder) -> None:
        for _ in range(300):
            np.testing.assert_array_equal(encoder.run(feeds)["text"], expected)

    def score() -> None:
        for _ in range(100):
            check_topk(scorer.topk(terms, 20), terms, rows, 20)

    def watched(act: Any, *given: Any) -> None:
        try:
            act(*given)
        except (Exception, AssertionError) as error:
            wrong.append(error)

    threads = [threading.Thread(target=watched, args=(encode, encoder)) for encoder in encoders]
    threads.append(threading.Thread(target=watched, args=(score,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
