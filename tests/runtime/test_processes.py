"""Engines and searchers across forks, pickles, closings, interrupts and the end of the interpreter."""

import copy
import multiprocessing
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.bundle.model import Model
from cir_infer.errors import BundleError, DeviceError, UsageError
from cir_infer.processes.fork import PerProcess
from cir_infer.runtime.bundle_graphs import _open_in_child
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.plan_policy import PlanPolicy
from tests.bundles import image_graph, write_tiny_bundle
from tests.gallery.interrupts import Bomb, Interrupt, descriptors
from tests.processes.forking import exit_code_of_fork

TEXT = "is red"


# ---- forks


def test_an_engine_that_has_answered_works_in_a_forked_child(bundle: Path, pictures: list[Path]) -> None:
    engine = Engine(bundle, device="cpu", threads=4)
    rows, texts = engine.encode_images(pictures[:8], 3), engine.encode_texts([TEXT])

    def work() -> int:
        same = np.array_equal(engine.encode_images(pictures[:8], 3), rows)
        return int(not (same and np.array_equal(engine.encode_texts([TEXT]), texts)))

    assert exit_code_of_fork(work) == 0
    assert exit_code_of_fork(lambda: exit_code_of_fork(work)) == 0, "a fork of a fork"
    np.testing.assert_array_equal(engine.encode_images(pictures[:8], 3), rows)


def test_a_searcher_that_has_answered_works_in_a_forked_child(
    engine: Engine, gallery_path: Path, pictures: list[Path]
) -> None:
    searcher = Searcher(engine, gallery_path)
    expected = [searcher.query(image, TEXT) for image in pictures[:5]]
    hit = expected[0][2]
    refined = searcher.query(hit, "is longer")

    def work() -> int:
        answers = list(searcher.query_batch(pictures[:5], [TEXT] * 5))
        alone = [searcher.query(image, TEXT) for image in pictures[:5]]
        return int(not (answers == alone == expected and searcher.query(hit, "is longer") == refined))

    assert exit_code_of_fork(work) == 0
    assert [searcher.query(image, TEXT) for image in pictures[:5]] == expected


def test_a_fork_while_other_threads_ask(engine: Engine, gallery_path: Path, pictures: list[Path]) -> None:
    searcher = Searcher(engine, gallery_path)
    expected = searcher.query(pictures[0], TEXT)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            searcher.query(pictures[1], TEXT)
            engine.encode_images(pictures[:3])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        codes = [
            exit_code_of_fork(lambda: int(searcher.query(pictures[0], TEXT) != expected)) for _ in range(10)
        ]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 10


@pytest.mark.parametrize("use", ["searcher.query(image, text)", "pass"])
def test_a_child_that_ends_like_a_program_does_not_crash(
    bundle: Path, gallery_path: Path, pictures: list[Path], use: str
) -> None:
    """Sessions have threads that a child does not have; taking them apart there hangs or crashes."""
    program = (
        "import os, sys\nfrom cir_infer import Engine, Searcher\n"
        "bundle, gallery, image, text = sys.argv[1:]\n"
        "searcher = Searcher(bundle, gallery, 'cpu', threads=4)\nsearcher.query(image, text)\n"
        f"if os.fork() == 0:\n    {use}\n    sys.exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    command = [sys.executable, "-c", program, str(bundle), str(gallery_path), str(pictures[0]), TEXT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_a_pool_of_forked_workers_shares_a_searcher(
    engine: Engine, gallery_path: Path, pictures: list[Path]
) -> None:
    global _shared
    _shared = Searcher(engine, gallery_path)
    expected = [_shared.query(image, TEXT).ids for image in pictures[:6]]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_ask_shared, pictures[:6]).get(60) == expected


_shared: Searcher


def _ask_shared(image: Path) -> list[str]:
    return _shared.query(image, TEXT).ids


def test_a_bundle_that_was_replaced_is_noticed_in_a_child(tmp_path: Path, pictures: list[Path]) -> None:
    path = write_tiny_bundle(tmp_path / "a.cir")
    engine = Engine(path, device="cpu")
    engine.encode_images(pictures[:2])
    write_tiny_bundle(tmp_path / "b.cir", "features").replace(path)

    def work() -> int:
        try:
            engine.encode_images(pictures[:2])
        except BundleError:
            return 0
        return 1

    assert exit_code_of_fork(work) == 0
    engine.encode_images(pictures[:2])


def test_an_engine_on_a_gpu_refuses_in_a_child(bundle: Path, pictures: list[Path]) -> None:
    engine = Engine(bundle, device="cpu")
    # As it is where the graphs were opened on a GPU.
    again = partial(_open_in_child, engine._bundle, "cuda", None, PlanPolicy())
    engine._opened = PerProcess(again, engine._opened.get())

    def work() -> int:
        try:
            engine.encode_images(pictures[:1])
        except DeviceError as error:
            return int("spawn" not in str(error))
        return 1

    assert exit_code_of_fork(work) == 0


def test_a_graph_by_itself_refuses_in_a_child() -> None:
    graph = OnnxBackend("cpu", 2).load("image", Model(image_graph()))
    feeds = {"image": np.zeros((1, 8, 8, 3), np.uint8)}
    graph.run(feeds)

    def work() -> int:
        try:
            graph.run(feeds)
        except DeviceError as error:
            return int("forked" not in str(error))
        return 1

    assert exit_code_of_fork(work) == 0
    graph.run(feeds)


# ---- closing


def test_a_closed_engine_says_so(bundle: Path, pictures: list[Path]) -> None:
    with Engine(bundle, device="cpu") as engine:
        engine.encode_images(pictures[:3])
    engine.close()
    assert "closed" in repr(engine)
    for call in (
        lambda: engine.encode_images(pictures[:3]),
        lambda: engine.encode_texts([TEXT]),
        engine.warm_up,
        engine.describe,
        lambda: engine.encode_prepared(np.zeros((1, 8, 8, 3), np.uint8)),
    ):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_a_closed_searcher_says_so_and_closes_what_it_opened(
    bundle: Path, gallery_path: Path, pictures: list[Path]
) -> None:
    with Searcher(bundle, gallery_path, device="cpu") as searcher:
        searcher.query(pictures[0], TEXT)
    for call in (
        lambda: searcher.query(pictures[0], TEXT),
        lambda: list(searcher.query_batch(pictures[:1], [TEXT])),
        searcher.warm_up,
    ):
        with pytest.raises(UsageError, match="closed"):
            call()
    with pytest.raises(UsageError, match="closed"):
        searcher.engine.encode_texts([TEXT])
    assert "closed" in repr(searcher)
    searcher.close()


def test_what_was_passed_stays_open(engine: Engine, gallery_path: Path, pictures: list[Path]) -> None:
    with Gallery.open(gallery_path, engine, read_only=True) as gallery:
        with Searcher(engine, gallery) as searcher:
            searcher.query(pictures[0], TEXT)
        engine.encode_texts([TEXT])
        assert len(gallery) == len(pictures)


def test_a_searcher_that_cannot_open_leaves_nothing_open(bundle: Path, gallery_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(UsageError, match="abacus"):
            Searcher(bundle, gallery_path, device="abacus")
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_closing_beside_queries_answers_or_refuses(bundle: Path, pictures: list[Path]) -> None:
    engine = Engine(bundle, device="cpu")
    begun = threading.Barrier(4)
    ends: list[str] = []

    def work() -> None:
        begun.wait()
        try:
            while True:
                engine.encode_images(pictures[:6], 2)
        except UsageError as error:
            ends.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    engine.close()
    for thread in threads:
        thread.join(60)
    assert len(ends) == 3 and all("closed" in end for end in ends)


# ---- pickling and copying


def test_pickles_and_copies_open_the_same_bundle_again(
    engine: Engine, gallery_path: Path, pictures: list[Path]
) -> None:
    searcher = Searcher(engine, gallery_path)
    expected = searcher.query(pictures[0], TEXT)
    for again in (pickle.loads(pickle.dumps(searcher)), copy.copy(searcher), copy.deepcopy(searcher)):
        assert again.query(pictures[0], TEXT) == expected
        assert again is not searcher and again.engine.device == "cpu" and again.engine.threads == 1
        again.close()
    assert searcher.query(pictures[0], TEXT) == expected


def _ask_spawned(searcher: Searcher, image: str, answers: "multiprocessing.Queue[list[str]]") -> None:
    answers.put(searcher.query(image, TEXT).ids)


def test_a_spawned_process_gets_a_searcher(engine: Engine, gallery_path: Path, pictures: list[Path]) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    searcher = Searcher(engine, gallery_path)
    process = context.Process(target=_ask_spawned, args=(searcher, str(pictures[0]), answers))
    process.start()
    assert answers.get(timeout=120) == searcher.query(pictures[0], TEXT).ids
    process.join()
    assert process.exitcode == 0


def test_another_bundle_under_the_same_path_is_not_taken_for_the_pickled_one(tmp_path: Path) -> None:
    path = write_tiny_bundle(tmp_path / "a.cir")
    data = pickle.dumps(Engine(path, device="cpu"))
    write_tiny_bundle(tmp_path / "b.cir", "cosine").replace(path)
    with pytest.raises(BundleError, match="another bundle"):
        pickle.loads(data)


def test_paths_are_kept_from_where_they_were_given(
    bundle: Path, gallery_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(bundle.parent)
    searcher = Searcher(bundle.name, gallery_path.name, device="cpu")
    expected = searcher.query(pictures[0], TEXT)
    monkeypatch.chdir(tmp_path)
    assert exit_code_of_fork(lambda: int(searcher.query(pictures[0], TEXT) != expected)) == 0
    assert pickle.loads(pickle.dumps(searcher)).query(pictures[0], TEXT) == expected


# ---- threads and the end of the interpreter

OUTLIVE = """
import sys, threading
from cir_infer import Searcher
bundle, gallery, image, text = sys.argv[1:]
searcher = Searcher(bundle, gallery, "cpu")
def work():
    threading.main_thread().join()
    for _ in range(5):
        searcher.query(image, text)
        searcher.engine.encode_images([image] * 5, 2)
    print("done", flush=True)
for _ in range(3):
    threading.Thread(target=work).start()
"""

DAEMONS = """
import sys, threading
from cir_infer import Searcher
bundle, gallery, image, text = sys.argv[1:]
searcher = Searcher(bundle, gallery, "cpu", threads=1)
ready = threading.Barrier(4)
def work():
    searcher.query(image, text)
    ready.wait()
    while True:
        searcher.query(image, text)
        searcher.engine.encode_images([image] * 3)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
ready.wait()
"""


def _run(program: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_threads_that_outlive_the_main_thread_are_answered(
    bundle: Path, gallery_path: Path, pictures: list[Path]
) -> None:
    done = _run(OUTLIVE, bundle, gallery_path, pictures[0], TEXT)
    assert (done.stdout.count("done"), done.returncode) == (3, 0), done.stderr


def test_daemon_threads_do_not_abort_the_end_of_a_program(
    bundle: Path, gallery_path: Path, pictures: list[Path]
) -> None:
    for _ in range(3):
        done = _run(DAEMONS, bundle, gallery_path, pictures[0], TEXT)
        assert (done.returncode, "terminate" in done.stderr) == (0, False), done.stderr


# ---- interrupts


def left_of(opened: set[str]) -> set[str]:
    """What stayed open, but for connections to a catalogue: some rest until they are used again."""
    return {entry for entry in opened if "catalogue.sqlite" not in entry and "/readers/" not in entry}


def test_an_interrupt_anywhere_leaves_engine_and_searcher_usable(
    engine: Engine, gallery_path: Path, pictures: list[Path]
) -> None:
    """Raised at every line that runs in this package, one after the other, as Ctrl-C may be."""
    searcher = Searcher(engine, gallery_path)
    home = str(Path(sys.modules["cir_infer"].__file__ or "").parent)
    expected = searcher.query(pictures[0], TEXT)
    many = list(searcher.query_batch(pictures[:3], [TEXT] * 3))

    def ask() -> None:
        assert searcher.query(pictures[0], TEXT) == expected
        assert list(searcher.query_batch(pictures[:3], [TEXT] * 3, batch_size=2)) == many

    def interrupted_at(number: int) -> bool:
        bomb = Bomb(number, only=(home,))
        with suppress(Interrupt):  # while a generator is closed, Python prints it and goes on
            bomb(ask)
        return bomb.fired

    previous = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(280)  # a hang ends the tests
    try:
        number, step = 1, 97
        ask()
        held = descriptors()
        while interrupted_at(number):
            ask()
            number += step
        assert sys.platform != "linux" or not left_of(descriptors() - held)
        assert number > 50 * step
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def test_an_interrupt_anywhere_in_the_choice_of_a_scorer_keeps_nobody_out(
    engine: Engine, gallery_path: Path, pictures: list[Path]
) -> None:
    """At every instruction of it, for a gallery that is new to the searcher and for one that it knows."""
    expected = Searcher(engine, gallery_path).query(pictures[0], TEXT)
    known = Searcher(engine, gallery_path)
    known.query(pictures[0], TEXT)
    for searcher in (known, None):
        number, fired = 0, True
        while fired:
            number += 1
            asked = Searcher(engine, gallery_path) if searcher is None else searcher
            bomb = Bomb(number, only=("vector_searcher.py",))
            with suppress(Interrupt):
                bomb(partial(asked._scorer, asked.gallery.snapshot()))
            fired = bomb.fired
            asked_again = Thread(target=asked._scorer, args=(asked.gallery.snapshot(),), daemon=True)
            asked_again.start()
            asked_again.join(60)
            assert not asked_again.is_alive()
        assert number > 20 and asked.query(pictures[0], TEXT) == expected
