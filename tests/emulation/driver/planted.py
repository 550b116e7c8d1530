"""Programs with a planted mistake in the host code; the module's one argument names it. They need PyCUDA."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cir_infer.gpu.context import _CudaDevice, open_device
from cir_infer.scoring.cuda import CudaScorer
from cir_infer.scoring.cuda.tuning import Tuning
from tests.gpu.recurrent_checks import check_texts, random_text
from tests.scoring.cases import check_topk, random_terms, rows_of

Device = Any


def none() -> None:
    """The code as it is."""


def copies_do_not_wait_for_scans() -> None:
    """The buffers of a streamed gallery are overwritten whenever the copy comes to run."""
    wait = _CudaDevice.wait
    copies: list[Any] = []

    def wait_unless_of_copies(self: Device, stream: Any, event: Any) -> None:
        copies.append(stream)
        if stream is not copies[0]:  # the first to wait is the one for copies
            wait(self, stream, event)

    _CudaDevice.wait = wait_unless_of_copies  # type: ignore[method-assign]


def scans_do_not_wait_for_copies() -> None:
    """They read what the buffers held before."""
    wait = _CudaDevice.wait
    copies: list[Any] = []

    def wait_if_of_copies(self: Device, stream: Any, event: Any) -> None:
        copies.append(stream)
        if stream is copies[0]:
            wait(self, stream, event)

    _CudaDevice.wait = wait_if_of_copies  # type: ignore[method-assign]


def nothing_is_waited_for() -> None:
    """The answer is read before it is there."""
    _CudaDevice.synchronize = lambda self, stream: None  # type: ignore[method-assign]


def uploads_go_elsewhere() -> None:
    """Through the default stream, for which streams of ours do not wait."""
    upload = _CudaDevice.upload

    def other(self: Device, address: int, array: Any, stream: Any) -> None:
        upload(self, address, array, None)

    _CudaDevice.upload = other  # type: ignore[method-assign]


def kernels_go_elsewhere() -> None:
    """Every launch on a stream of its own."""
    launch: Any = _CudaDevice.launch

    def other(self: Device, *what: Any) -> None:
        launch(self, *what[:-1], self.new_stream())

    _CudaDevice.launch = other  # type: ignore[assignment, method-assign]


def memory_goes_while_it_is_used() -> None:
    """A prepared search is closed before its stream has passed."""
    random = np.random.default_rng(0)
    rows = rows_of(random.standard_normal((300, 32)), "float16")
    scorer, device = CudaScorer(rows), open_device()
    search = scorer.prepare(1, 1, False, 5)
    terms = random_terms(random, 1, 1, 32, False)
    with device.active():
        stream = device.new_stream()
        device.upload(search.numerators, terms.numerators, stream)
        search.launch(stream)
        search.close()
        device.synchronize(stream)


def use() -> None:
    """Rows in place and streamed, plain and through the tensor cores, and texts."""
    random = np.random.default_rng(0)
    rows = rows_of(random.standard_normal((3000, 32)), "float16")
    always = Tuning(queries=1, rows=0, first_rows=16, least_first_rows=8, list_capacity=64, most_listed=0)
    for memory, tuning in ((None, None), (None, always), (1 << 14, None)):
        scorer = CudaScorer(rows, memory=memory, tuning=tuning)
        for queries in (1, 9):
            terms = random_terms(random, queries, 2, 32, True)
            check_topk(scorer.topk(terms, 20), terms, rows, 20)
        scorer.close()
    check_texts(open_device(), random_text("gru", 2, 24, 10), [1, 2, 3, 7] * 9)


MISTAKES: tuple[Callable[[], None], ...] = (
    copies_do_not_wait_for_scans,
    scans_do_not_wait_for_copies,
    nothing_is_waited_for,
    uploads_go_elsewhere,
    kernels_go_elsewhere,
    memory_goes_while_it_is_used,
)

if __name__ == "__main__":
    globals()[sys.argv[1]]()
    use()
