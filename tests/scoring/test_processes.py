"""Native scorers in forked children, in daemon threads when the interpreter ends, and under interrupts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = """
import os, signal, sys, threading, time
import numpy as np
from cir_infer.errors import CirError
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows

def terms(q, d):
    n = np.random.default_rng(1).standard_normal((q, 2, d)).astype("f4")
    return QueryTerms(n, np.abs(n), ("a", "b"))

def rows(n, d):
    return Rows.of(np.random.default_rng(0).standard_normal((n, d), dtype="f4"))
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Newer Pythons warn of every fork beside a thread, which is what is tested.
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    return subprocess.run(
        [sys.executable, *quiet, "-c", SETUP + program, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("backend", ["cpu", "cpu-int8", "reference"])
def test_a_forked_child_gets_the_same_answer(backend: str) -> None:
    """Also while another thread of the parent is in the middle of a call."""
    done = run(
        """
scorer, asked = make_scorer(rows(30_000, 64), sys.argv[1], threads=2), terms(2, 64)
expected = scorer.topk(asked, 10)
stop = threading.Event()
def busy():
    while not stop.is_set():
        scorer.topk(asked, 10)
other = threading.Thread(target=busy)
other.start()
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(a, b) for a, b in zip(expected, scorer.topk(asked, 10)))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
other.join()
""",
        backend,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_scorer_of_a_gpu_refuses_in_a_forked_child() -> None:
    """And the child may end like any other program: it frees nothing of its parent's."""
    done = run(
        """
from cir_infer.scoring.cuda import CudaScorer
from tests.emulation.emulated import EmulatedDevice
scorer, asked = CudaScorer(rows(300, 16), device=EmulatedDevice()), terms(1, 16)
expected = scorer.topk(asked, 5)
scorer._lock.acquire()  # as another thread may hold it at the fork
child = os.fork()
if child == 0:
    for use in (lambda: scorer.topk(asked, 5), lambda: scorer.statistics, lambda: scorer.name):
        try:
            use()
        except CirError as error:
            assert "forked" in str(error) and "spawn" not in sys.argv, error
        else:
            raise SystemExit("answered")
    scorer.close()
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
scorer._lock.release()
assert np.array_equal(scorer.topk(asked, 5).rows, expected.rows)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("backend", ["cpu", "cpu-int8"])
def test_daemon_threads_in_a_scan_do_not_spoil_the_end(backend: str) -> None:
    for _ in range(3):
        done = run(
            """
scorer, asked = make_scorer(rows(20_000, 64), sys.argv[1], threads=2), terms(2, 64)
scorer.topk(asked, 10)
def busy():
    while True:
        scorer.topk(asked, 10)
for _ in range(6):
    threading.Thread(target=busy, daemon=True).start()
time.sleep(0.05)
""",
            backend,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs signal.setitimer")
@pytest.mark.parametrize("backend", ["cpu", "cpu-int8"])
def test_signals_are_answered_during_a_long_call(backend: str) -> None:
    """Were they not, the handler would run once, after the answer, and nobody would be interrupted."""
    done = run(
        """
scorer, asked = make_scorer(rows(100_000, 128), sys.argv[1], threads=2), terms(6000, 128)
seen = 0
def handle(number, frame):
    global seen
    seen += 1
    if seen == 3:
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
try:
    scorer.topk(asked, 10)
except KeyboardInterrupt:
    signal.setitimer(signal.ITIMER_REAL, 0)
    print("interrupted", scorer.topk(asked[0], 10).rows.shape)
""",
        backend,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted (1, 10)\n", "", 0)
