"""Threads that work beside the caller, also when the main program has ended; the interpreter's end."""

import subprocess
import sys
import threading

import pytest

from cir_infer.processes import threads
from cir_infer.processes.threads import Threads


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_results_come_back_in_any_order() -> None:
    threads = Threads(3)
    tasks = [threads.submit(pow, 2, n) for n in range(50)]
    assert [task.result() for task in reversed(tasks)] == [2**n for n in reversed(range(50))]


def test_never_more_threads_than_asked_for() -> None:
    threads = Threads(2)
    both, leave = threading.Barrier(3), threading.Event()
    active: list[int] = []

    def work() -> None:
        active.append(threading.get_ident())
        both.wait(120)
        leave.wait(120)

    tasks = [threads.submit(work) for _ in range(2)]
    last = threads.submit(threading.get_ident)
    both.wait(120)
    assert len(set(active)) == 2
    leave.set()
    assert last.result() in active
    for task in tasks:
        task.result()


def test_what_work_raises_is_raised_where_its_result_is_asked_for() -> None:
    threads = Threads(1)
    task = threads.submit(int, "x")
    with pytest.raises(ValueError, match="'x'"):
        task.result()
    assert threads.submit(int, "5").result() == 5


def test_cancelled_work_is_not_begun() -> None:
    threads = Threads(1)
    leave = threading.Event()
    done: list[int] = []
    first = threads.submit(leave.wait, 20)
    second = threads.submit(done.append, 1)
    assert second.cancel()
    leave.set()
    first.result()
    assert not first.cancel()
    threads.submit(done.append, 2).result()
    assert done == [2]


def test_work_whose_thread_ended_before_it_is_done_by_whoever_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So one ends where no memory is left for its first frame: its work was waited for for ever."""
    monkeypatch.setattr(threads, "_serve", lambda *_: None)
    monkeypatch.setattr(threads, "_PATIENCE", 0.01, raising=False)
    task = Threads(1).submit(lambda: "done")
    results: list[str] = []
    waiting = threading.Thread(target=lambda: results.extend([task.result(), task.result()]), daemon=True)
    waiting.start()
    waiting.join(10)
    assert results == ["done", "done"]


def test_closed_threads_end_after_their_work() -> None:
    threads = Threads(2)
    before = threading.Event()
    task = threads.submit(before.wait, 20)
    threads.submit(int).result()
    threads.close()
    before.set()
    assert task.result()


def test_without_threads_the_caller_works_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("cir_infer.processes.threads._thread.start_new_thread", refuse)
    threads = Threads(4)
    assert threads.submit(threading.get_ident).result() == threading.get_ident()
    with pytest.raises(ValueError):
        threads.submit(int, "x").result()


OUTLIVE = """
import threading, time
from cir_infer.processes.threads import Threads
threads = Threads(2)
def work():
    threading.main_thread().join()  # the program has ended, the interpreter has not
    print(sum(task.result() for task in [threads.submit(pow, 2, n) for n in range(5)]))
threading.Thread(target=work).start()
"""


def test_threads_work_after_the_end_of_the_main_thread() -> None:
    done = python(OUTLIVE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "31\n", "")


WAIT = """
import atexit, threading, time
state = []
def last():
    print(*state)
    with native_call:
        print("the main thread may")
atexit.register(last)  # before the module below registers, so that it runs after
from cir_infer.processes.ending import native_call
inside = threading.Event()
def work():
    with native_call:
        inside.set()
        time.sleep(0.3)
        state.append("came back")
    with native_call:
        state.append("went in again")
threading.Thread(target=work, daemon=True).start()
inside.wait()
"""


def test_the_interpreter_waits_for_native_calls_and_lets_none_begin() -> None:
    done = python(WAIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "came back\nthe main thread may\n"


LAST = """
import atexit
def last():
    print(*[threads.submit(inside, n).result() for n in range(3)])
atexit.register(last)  # runs after that of the module below, as above
from cir_infer.processes.ending import native_call
from cir_infer.processes.threads import Threads
def inside(number):
    with native_call:
        return number
threads = Threads(1)
threads.submit(inside, 0).result()  # there is a thread now
"""


def test_what_is_handed_over_while_the_interpreter_ends_is_done() -> None:
    """A program that asks a last time as it leaves: a thread would wait for ever before its native call."""
    done = python(LAST)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1 2\n", "")


def test_an_interrupted_native_call_of_the_main_thread_does_not_keep_the_interpreter() -> None:
    done = python("from cir_infer.processes.ending import native_call\nnative_call.__enter__()\nprint('end')")
    assert (done.returncode, done.stdout) == (0, "end\n")
