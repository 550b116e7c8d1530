"""What a forked child finds of what rests on threads, locks and processes."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from cir_infer.errors import DeviceError, GalleryError
from cir_infer.processes.fork import PerProcess, ProcessBound
from cir_infer.processes.threads import Threads
from tests.processes.forking import exit_code_of_fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def test_a_value_is_made_once_in_a_process() -> None:
    made: list[object] = []
    value = PerProcess(lambda: made.append(object()) or made[-1])
    assert value.drop() is None
    assert value.get() is value.get() is made[0]
    assert value.drop() is made[0]
    assert value.drop() is None
    assert value.get() is made[1]


def test_many_threads_get_one_value() -> None:
    value = PerProcess(object)
    start = threading.Barrier(8)
    got: list[object] = []

    def work() -> None:
        start.wait()
        got.append(value.get())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, got))) == 1


def test_a_forked_child_makes_its_own() -> None:
    value = PerProcess(lambda: os.getpid())
    assert value.get() == os.getpid()
    assert exit_code_of_fork(lambda: int(value.get() != os.getpid())) == 0
    assert value.get() == os.getpid()


def test_a_lock_that_another_thread_held_is_open_in_the_child() -> None:
    lock = PerProcess(threading.Lock)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock.get():
            held.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert exit_code_of_fork(lambda: int(not lock.get().acquire(timeout=120))) == 0
    leave.set()
    thread.join()


def test_a_value_that_is_being_made_during_the_fork_does_not_lock_the_child() -> None:
    making, leave = threading.Event(), threading.Event()
    parent = os.getpid()

    def make() -> int:
        if os.getpid() == parent:
            making.set()
            leave.wait()
        return os.getpid()

    value = PerProcess(make)
    thread = threading.Thread(target=value.get)
    thread.start()
    making.wait()
    assert exit_code_of_fork(lambda: int(value.get() != os.getpid())) == 0
    leave.set()
    thread.join()


PROGRAM = """
import os, sys
from cir_infer.processes.fork import PerProcess
class Touchy:
    def __init__(self):
        self.pid = os.getpid()
    def __del__(self, getpid=os.getpid, leave=os._exit):
        if getpid() != self.pid:
            leave(7)
value = PerProcess(Touchy)
value.get()
if os.fork() == 0:
    if sys.argv[1] == "used":
        value.get()
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("use", ["used", "not used"])
def test_what_a_child_inherits_is_never_taken_apart_there(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, use], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


RELEASED = """
import gc, os, sys, time
from cir_infer.processes.fork import finalize_here
class Owner: pass
owner, dropped = Owner(), Owner()
finalize_here(owner, print, "freed", flush=True)
finalize_here(dropped, print, "dropped", end="\\n", flush=True)
if os.fork() == 0:
    del dropped
    gc.collect()
    sys.exit(0)  # which runs what is to be run at the end
os.wait()
del dropped
print("waited", flush=True)
"""


def test_what_is_released_here_is_not_released_in_a_child() -> None:
    done = subprocess.run([sys.executable, "-c", RELEASED], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("dropped\nwaited\nfreed\n", "")


SCRATCH = """
import os, sys
from cir_infer.processes.scratch import scratch_folder
with scratch_folder("cir-") as folder:
    if os.fork() == 0:
        sys.exit(0)
    os.wait()
    (folder / "file").write_text("ours still")
print(folder.exists())
"""


def test_a_scratch_folder_outlives_children() -> None:
    done = subprocess.run([sys.executable, "-c", SCRATCH], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_what_is_bound_to_its_process_refuses_in_another() -> None:
    bound = ProcessBound("the CUDA context of GPU 0", "start workers with the method 'spawn'")
    bound.check()

    def refused() -> int:
        try:
            bound.check()
        except DeviceError as error:
            return int(
                not ("GPU 0" in str(error) and str(os.getppid()) in str(error) and "spawn" in str(error))
            )
        return 2

    assert bound.here
    assert exit_code_of_fork(refused) == 0
    other = ProcessBound("a gallery", "open it again", GalleryError)
    assert exit_code_of_fork(lambda: int(other.here)) == 0


def test_a_pool_of_threads_is_made_anew_in_a_child() -> None:
    pool: PerProcess[Threads] = PerProcess(lambda: Threads(2))
    work: Callable[[], int] = lambda: sum(pool.get().submit(pow, 2, n).result() for n in range(8))  # noqa: E731
    assert work() == 255
    assert exit_code_of_fork(lambda: int(work() != 255)) == 0
    assert work() == 255
