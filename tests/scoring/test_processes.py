"""Native scorers in forked children, in daemon threads when the interpreter ends, and under interrupts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cir_infer.scoring import _kernels
from cir_infer.scoring.cpu import instruction_sets

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


HELD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

atomic_int held, made, waiting;
struct start { void *(*run)(void *); void *given; };

static void *later(void *given) {
    struct start start = *(struct start *)given;
    free(given);
    while (held) usleep(1000);
    waiting--;
    return start.run(start.given);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *given) {
    int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    real = dlsym(RTLD_NEXT, "pthread_create");
    struct start *start = malloc(sizeof *start);
    *start = (struct start){run, given};
    made++;
    waiting++;
    return real(thread, attributes, later, start);
}
"""
"""Threads do not begin while `held`, as on cores that others keep."""


def run(
    program: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # Newer Pythons warn of every fork beside a thread, which is what is tested.
    quiet = ("-W", "ignore:This process:DeprecationWarning")
    return subprocess.run(
        [sys.executable, *quiet, "-c", SETUP + program, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
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


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a C compiler")
def test_threads_that_never_begin_do_not_pile_up(tmp_path: Path) -> None:
    """However many queries are asked meanwhile; a forked child has none of them, and starts its own."""
    layer = tmp_path / "held.so"
    command = ["cc", "-shared", "-fPIC", "-xc", "-", "-o", str(layer), "-ldl"]
    subprocess.run(command, input=HELD, text=True, check=True)
    done = run(
        """
import ctypes
layer = ctypes.CDLL(sys.argv[1])
held, made, waiting = (ctypes.c_int.in_dll(layer, name) for name in ("held", "made", "waiting"))
scorer, asked = make_scorer(rows(30_000, 64), "cpu", threads=2), terms(2, 64)
expected = scorer.topk(asked, 10)
def same():
    return all(np.array_equal(a, b) for a, b in zip(expected, scorer.topk(asked, 10)))
held.value = 1
assert all(same() for _ in range(100))
most = waiting.value
assert 0 < most < 100, most
assert all(same() for _ in range(50)) and waiting.value == most
child = os.fork()
if child == 0:
    os._exit(0 if same() and waiting.value > most else 1)
assert os.waitpid(child, 0)[1] == 0
held.value = 0
before, until = made.value, time.monotonic() + 60
while made.value == before:  # once those have ended, new ones are started
    assert same() and time.monotonic() < until
""",
        str(layer),
        environment={"LD_PRELOAD": str(layer)},
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


@pytest.mark.parametrize("backend", ["cpu", "cpu-int8"])
def test_which_thread_is_the_main_one_is_told_without_python(backend: str) -> None:
    """A thread that lost its turn in there when the interpreter ended was unwound through a scan's frames."""
    done = run(
        """
main_thread, asked_for = threading.main_thread, threading.Event()
def late():
    if threading.current_thread() is not main_thread():
        asked_for.set()
        ending.acquire()
    return main_thread()
class Out:
    closed, flushed = False, 0
    def write(self, text):
        pass
    def flush(self):
        self.flushed += 1
        if self.flushed == 2:  # when no other thread may run any more
            ending.release()
            time.sleep(0.3)
ending = threading.Lock()
ending.acquire()
scorer, asked = make_scorer(rows(20_000, 64), sys.argv[1], threads=2), terms(2, 64)
threading.main_thread = late
done = threading.Thread(target=scorer.topk, args=(asked, 10), daemon=True)
done.start()
while done.is_alive() and not asked_for.is_set():
    time.sleep(0.001)
sys.stdout = Out()
""",
        backend,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_that_another_thread_forked_answers_signals() -> None:
    """It is the main thread there."""
    done = run(
        """
scorer, asked = make_scorer(rows(100_000, 128), "cpu", threads=2), terms(6000, 128)
def child():
    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        scorer.topk(asked, 10)
    except KeyboardInterrupt:
        os._exit(7)
    os._exit(1)
def interrupt(number, frame):
    raise KeyboardInterrupt
def fork():
    pid = os.fork()
    if not pid:
        child()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread = threading.Thread(target=fork)
thread.start()
thread.join()
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == ("7\n", "", 0)


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


@pytest.mark.skipif(
    instruction_sets()[0] not in _kernels.byte_instruction_sets(), reason="only products of bytes are counted"
)
def test_an_interrupt_is_heard_while_only_another_thread_has_queries_left() -> None:
    """Each takes 128. Whoever called is soon done with ordinary ones; the others score all rows exactly."""
    done = run(
        """
random = np.random.default_rng(0)
scorer = make_scorer(Rows.of(1000 * random.standard_normal((100_000, 64), dtype="f4")), "cpu", threads=2)
size = np.repeat(np.float32([1e-3, 1e35]), 128)[:, None, None]
asked = QueryTerms(size * random.standard_normal((256, 1, 64)).astype(np.float32), None, ("a",))
def seen():
    return sum(scorer.statistics[:2])
def interrupt():
    while not seen():
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try:
    scorer.topk(asked, 10)
except KeyboardInterrupt:
    print(seen())
"""
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{128 * 100_000}\n", "", 0)
