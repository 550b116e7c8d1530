"""No test sees what another has kept of its graphs or waits for a disk; threads are as many as processors;
Ctrl-C ends all.

Property tests draw the same examples in every run and no clock judges them; unseeded dice fall alike.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.export.once import Once

# What tests leave is not looked for after every 700 objects: that took a tenth of an export's time.
gc.set_threshold(50_000)
os.environ["CIR_GRAPH_CACHE"] = "off"
# For PyTorch and NumPy, here and in what tests begin; read when those are loaded. There is a worker for every
# processor, and threads that wait for each other burn it: 28 tiny trainings took 193 seconds of them, not 7.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before any test module is read: what a test says of its own goes on from here.
settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
# Ignored in what a shell begins in the background, and in all that it begins.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _in_memory() -> Path | None:
    """A folder in memory, if one has room for what tests write and may hold the programs that they compile.

    A commit waits for the disk. What a crash would leave there is computed (tests/gallery/faults.c), so no
    test needs that wait, and those of galleries and shards spent most of their time in it.
    """
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        return None
    found = os.statvfs(folder)
    roomy = found.f_bavail * found.f_frsize >= 1 << 30  # five times what lies there at most
    return folder if roomy and not found.f_flag & os.ST_NOEXEC else None


if place := _in_memory():
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(place))


def _throw_alike(name: str) -> None:
    """Seed what draws without a generator: PyTorch's seed is another in every process, and goes on.

    By the name, so that a fixture's weights are not a test's inputs.
    """
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    _throw_alike(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    _throw_alike(pyfuncitem.name)


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`with exported_once():` exports the graphs of a model unless another test or worker has."""
    from tests.export.once import Once

    workers = tmp_path_factory.getbasetemp()
    return Once((workers.parent if "PYTEST_XDIST_WORKER" in os.environ else workers) / "exported")


_settled: tuple[str, int] = ("", 0)


def _settle(file: str) -> None:
    """PyTorch and thousands of tests stay: the collector need not look through them again and again.

    Nor what a file leaves, in caches of PyTorch above all: a look took a third of a second in the end.
    """
    global _settled
    was, modules = _settled
    if file != was or len(sys.modules) >= modules + 100:
        _settled = file, len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    _settle("none")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    _settle(item.location[0])  # and parts of PyTorch are loaded by the first export
