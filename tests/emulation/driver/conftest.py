"""TensorRT's stand-in on streams of the emulated driver, for the tests that run on it with PyCUDA."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cir_infer.errors import DeviceError
from tests.runtime.conftest import bundle, engine, gallery_path, pictures, searcher
from tests.runtime.tensorrt.conftest import tensorrt, version

__all__ = ["bundle", "engine", "gallery_path", "pictures", "searcher", "tensorrt", "version"]

HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def missing() -> str:
    """Why tests cannot run on the emulated driver, or ""."""
    from cir_infer.scoring.cuda.context import open_device

    try:
        name = open_device().name
    except DeviceError as error:
        return str(error)
    return "" if name.startswith("Emulated") else "this is a real GPU"


class HostWork:
    """Functions of Python's on streams, as a library that launches kernels would put its own there."""

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
            try:
                act()
            except BaseException as error:
                self.failures.append(error)

        function = HOST_FUNCTION(run)
        with self._lock:
            self._kept.append(function)
        assert self._driver.cuLaunchHostFunc(ctypes.c_void_p(stream), function, None) == 0


@pytest.fixture
def real_device(tensorrt: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The `_CudaDevice` that PyCUDA gives; TensorRT's stand-in puts its runs on the driver's streams."""
    import tensorrt as fake

    from cir_infer.scoring.cuda.context import open_device

    work = HostWork()
    context = fake.IExecutionContext

    def execute(self: Any, stream_handle: int) -> bool:
        if work.capturing(stream_handle):
            assert self._settled, "the first run after new shapes cannot be captured"
        assert set(self._addresses) == {*self._engine._inputs, *self._engine._outputs}
        self._settled = True
        # As they are now: a run does not see what is set after it.
        now = SimpleNamespace(
            _engine=self._engine, _addresses=dict(self._addresses), _shapes=dict(self._shapes)
        )
        work.enqueue(stream_handle, lambda: context._run(now))
        return True

    monkeypatch.setattr(context, "execute_async_v3", execute)
    yield open_device()
    assert work.failures == []
