"""Programs that end in different ways while the GPU is open; the module's one argument names one.

They need PyCUDA.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from typing import Any

import numpy as np

from cir_infer.errors import DeviceError, ScoringError
from cir_infer.gpu.context import open_device
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.scoring.cuda import CudaScorer
from tests.gpu.recurrent_checks import random_feeds, random_text
from tests.scoring.cases import check_topk, random_terms, rows_of

kept: list[Any] = []


def used() -> CudaScorer:
    """A scorer that has answered, and an encoder."""
    random = np.random.default_rng(0)
    rows, terms = rows_of(random.standard_normal((300, 32)), "float16"), random_terms(random, 1, 2, 32, True)
    scorer = CudaScorer(rows)
    check_topk(scorer.topk(terms, 5), terms, rows, 5)
    text = random_text("gru", 2, 24, 10)
    encoder = RecurrentEncoder(text, open_device(), 8)
    encoder.run(random_feeds(text, [3]))
    kept.extend([scorer, encoder])
    return scorer


def left_open() -> None:
    """Nothing is closed."""
    used()


def opened_in_a_thread() -> None:
    """The GPU is opened, and all made, in a thread that is over by the end."""
    thread = threading.Thread(target=used)
    thread.start()
    thread.join()


def opened_by_many_threads() -> None:
    """The first to ask for the GPU are eight threads at once."""
    at_once = threading.Barrier(8)

    def use() -> None:
        at_once.wait()
        used()

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(kept) == 16


def dropped_in_threads() -> None:
    """Scorers come and go in many threads."""

    def use() -> None:
        used()
        kept.clear()
        gc.collect()

    used()
    for _ in range(8):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()


def exit_in_the_middle() -> None:
    """`sys.exit` inside the context, after work on a stream of the caller's."""
    used()
    device = open_device()
    with device.active():
        stream, memory = device.new_stream(), device.allocate(64)
        kept.extend([stream, memory])
        device.zero(memory.address, 64, stream)
        device.synchronize(stream)
        memory.free()
        sys.exit(3)


def an_error_that_nobody_caught() -> None:
    """The traceback holds frames that hold scorers."""
    scorer = used()
    raise RuntimeError(scorer.name)


def threads_still_at_work() -> None:
    """Daemon threads ask a scorer until the end."""
    scorer, begun = used(), threading.Barrier(5)
    terms = random_terms(np.random.default_rng(1), 1, 2, 32, True)

    def ask() -> None:
        scorer.topk(terms, 5)
        begun.wait()
        try:
            while True:
                scorer.topk(terms, 5)
        except (ScoringError, DeviceError):
            pass  # it has been closed

    for _ in range(4):
        threading.Thread(target=ask, daemon=True).start()
    begun.wait()


def a_forked_child_ends_first() -> None:
    """It is refused at once, whatever a thread of the parent was at, and frees nothing."""
    scorer, asked = used(), random_feeds(random_text("gru", 2, 24, 10), [3])
    encoder = kept[1]
    encoder._lock.acquire()
    if os.fork() == 0:
        for use in (lambda: scorer.name, lambda: encoder.run(asked)):
            try:
                use()
            except DeviceError as error:
                assert "forked" in str(error), error
            else:
                raise AssertionError("it cannot have run")
        kept.clear()
        sys.exit(0)
    assert os.wait()[1] == 0
    encoder._lock.release()
    encoder.run(asked)


def cannot_open() -> None:
    """Prints why the GPU cannot be opened."""
    try:
        open_device()
    except DeviceError as error:
        print(error)


def out_of_memory() -> None:
    """Buffers that do not fit are an error that the scorer survives, and all is given back."""
    device = open_device()
    random = np.random.default_rng(0)
    rows, terms = rows_of(random.standard_normal((300, 32)), "float16"), random_terms(random, 1, 2, 32, True)
    with device.active():
        before = device.free_bytes()
        held = device.allocate(before - (1 << 20))
    scorer = CudaScorer(rows, memory=1 << 20)
    check_topk(scorer.topk(terms, 5), terms, rows, 5)
    try:
        scorer.topk(random_terms(random, 4096, 2, 32, True), 1000)
    except DeviceError as error:
        assert "out of memory" in str(error), error
    else:
        raise AssertionError("it cannot have fitted")
    check_topk(scorer.topk(terms, 5), terms, rows, 5)
    scorer.close()
    with device.active():
        held.free()
        assert device.free_bytes() == before, (device.free_bytes(), before)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
