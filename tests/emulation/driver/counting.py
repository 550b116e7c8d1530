"""A pytest plugin: the tests of tests/runtime/tensorrt on the real device instead of `CapturingDevice`.

With `pytest -p tests.emulation.driver.counting`; `CountingDevice` is what PyCUDA gives, and counts as those
tests want to see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cir_infer.errors import DeviceError
from tests.emulation.driver.host_work import run_on_streams
from tests.runtime.tensorrt import gpu


class Replayed:
    """A captured graph, and how often it was launched."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self.launches = 0
        self.closed = False

    def launch(self) -> None:
        self.launches += 1
        self._graph.launch()

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self._graph.close()


class CountingDevice:
    """The device of `open_device`, counting what is allocated and captured."""

    def __init__(self, capturable: bool = True) -> None:
        import tensorrt

        from cir_infer.gpu.context import open_device

        self._device: Any = open_device()
        self._work = run_on_streams(tensorrt)
        self._capturable = capturable
        self.live_bytes = self.allocations = 0
        self.captured: list[Replayed] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def allocate(self, nbytes: int) -> Any:
        return gpu.counted(self, self._device.allocate(nbytes), nbytes)

    def capture(self, stream: object, enqueue: Callable[[], None]) -> Replayed:
        if not self._capturable:
            raise DeviceError("a CUDA graph failed: cuStreamEndCapture answered error 901 of the driver")
        self.captured.append(Replayed(self._device.capture(stream, enqueue)))
        return self.captured[-1]


gpu.CapturingDevice = CountingDevice  # type: ignore[assignment, misc]
