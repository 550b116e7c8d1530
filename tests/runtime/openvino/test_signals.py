"""Signals are taken wherever OpenVINO was opened and closed: it left a thread a stack that was gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cir_infer.extras import is_installed
from tests.bundles import write_tiny_bundle

pytestmark = pytest.mark.skipif(
    not is_installed("openvino"), reason="openvino is not installed (pip install 'cir-infer[openvino]')"
)

PROGRAM = """
import faulthandler, gc, signal, sys, threading
from cir_infer import Engine
if sys.argv[3] == "with a stack of its own":
    faulthandler.enable()
held = []

def run(in_thread, work):
    if not in_thread:
        return work()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

def close():
    held.pop().close()
    gc.collect()

opened, closed = (word == "thread" for word in sys.argv[2].split("-"))
for _ in range(2):
    run(opened, lambda: held.append(Engine(sys.argv[1], device="openvino", threads=1)))
    run(closed, close)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""


@pytest.mark.parametrize("stack", ["as it is", "with a stack of its own"])
@pytest.mark.parametrize("where", ["main-main", "main-thread", "thread-main", "thread-thread"])
def test_an_interrupt_is_heard_after_an_engine_was_closed(tmp_path: Path, where: str, stack: str) -> None:
    bundle = write_tiny_bundle(tmp_path / "b.cir")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, bundle, where, stack], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
