"""Python's functions on streams of the driver, where TensorRT would put its kernels."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class HostWork:
    """Puts functions on streams, and keeps what they failed with."""

    def __init__(self) -> None:
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._kept: list[Any] = []  # a graph may call them again
        self._lock = threading.Lock()
        self.failures: list[BaseException] = []

    def capturing(self, stream: int) -> bool:
        found = ctypes.c_int()
        assert self._driver.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(found)) == 0
        return found.value != 0

    def enqueue(self, stream: int, act: Callable[[], None]) -> None:
        def run(_: object) -> None:
            gc.disable()  # what it finds might call the driver, which a function on a stream must not
            try:
                act()
            except BaseException as error:
                self.failures.append(error)
            finally:
                gc.enable()

        function = _FUNCTION(run)
        with self._lock:
            self._kept.append(function)
        assert self._driver.cuLaunchHostFunc(ctypes.c_void_p(stream), function, None) == 0


def run_on_streams(tensorrt: Any) -> HostWork:
    """TensorRT's stand-in enqueues from now on instead of running at once."""
    work, context = HostWork(), tensorrt.IExecutionContext

    def execute(self: Any, stream_handle: int) -> bool:
        if work.capturing(stream_handle):
            assert self._settled, "the first run after new shapes cannot be captured"
        names = {*self._engine._inputs, *self._engine._outputs}
        assert set(self._addresses) == names and set(self._shapes) == set(self._engine._inputs)
        self._settled = True
        # As they are now: a run does not see what is set after it.
        now = SimpleNamespace(
            _engine=self._engine, _addresses=dict(self._addresses), _shapes=dict(self._shapes)
        )
        work.enqueue(stream_handle, lambda: context._run(now))
        return True

    context.execute_async_v3 = execute
    return work
