"""No test sees what another has kept of its graphs; threads are as many as processors; Ctrl-C ends all."""

from __future__ import annotations

import gc
import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.export.once import Once

os.environ["CIR_GRAPH_CACHE"] = "off"
# For PyTorch and NumPy, here and in what tests begin; read when those are loaded. There is a worker for every
# processor, and threads that wait for each other burn it: 28 tiny trainings took 193 seconds of them, not 7.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ignored in what a shell begins in the background, and in all that it begins.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`with exported_once():` exports the graphs of a model unless another test or worker has."""
    from tests.export.once import Once

    workers = tmp_path_factory.getbasetemp()
    return Once((workers.parent if "PYTEST_XDIST_WORKER" in os.environ else workers) / "exported")


def pytest_collection_finish() -> None:
    """PyTorch and eleven thousand tests stay: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()
