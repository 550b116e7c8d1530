"""Where the entries of one comparison run, and how one run is timed there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cir_infer.gpu.device import Device, Memory, Stream
from cir_infer.scoring.cuda.arguments import ReadArguments

__all__ = ["Place", "gpu"]

Launch = Callable[[Stream], object]

_GATE_BYTES = 32 << 20
_GATE_MS = 0.3
"""Enqueueing the seven launches of an exact answer from int8 takes some tens of microseconds."""


@dataclass(frozen=True)
class Place:
    """A device, under the names that our kernels, PyTorch and FAISS have for it.

    Attributes:
        device: for our kernels.
        torch: for PyTorch: "cuda" or "cpu".
        time: runs a launch on a stream and returns its milliseconds.
        cache_bytes: copies of the inputs are rotated until they add up to more than this.
        gemm_side: of the matrix product whose rate batches are held against.
        crossover_rows: of the gallery on which the kernels' crossover is looked for.
        calls: how often a whole call is timed.
    """

    device: Device
    torch: str
    time: Callable[[Launch, Stream], float]
    cache_bytes: int = 256 << 20
    gemm_side: int = 8192
    crossover_rows: int = 200_000
    calls: int = 500


def gpu() -> Place:
    """The first GPU, timed by CUDA events.

    Raises:
        DeviceError: no usable GPU.
    """
    from cir_infer.gpu.context import open_device

    device = open_device()
    return Place(device, "cuda", _BehindAGate(device))


class _BehindAGate:
    """Milliseconds of a launch between two events, without the host's share.

    An idle stream passes the first event at once, and the time until Python has enqueued the launch would
    count. So the stream is kept busy until all is enqueued: it reads memory for as long as that takes.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: list[Memory] = []
        self._reads = 0

    def __call__(self, launch: Launch, stream: Stream) -> float:
        import pycuda.driver as driver

        from cir_infer.gpu.context import pycuda_stream

        start, end = driver.Event(), driver.Event()
        for _ in range(self._reads or self._measured(stream)):
            self._read(stream)
        start.record(pycuda_stream(stream))
        launch(stream)
        end.record(pycuda_stream(stream))
        end.synchronize()
        return float(end.time_since(start))

    def _read(self, stream: Stream) -> None:
        blocks = 4 * self._device.multiprocessors
        arguments = ReadArguments(self._memory[0].address, self._memory[1].address, _GATE_BYTES // 16)
        self._device.launch("read_bytes", (blocks, 1), 0, arguments, stream)

    def _measured(self, stream: Stream) -> int:
        """How many reads last `_GATE_MS`."""
        import pycuda.driver as driver

        from cir_infer.gpu.context import pycuda_stream

        results = 4 * 256 * 4 * self._device.multiprocessors
        self._memory = [self._device.allocate(size) for size in (_GATE_BYTES, results)]
        self._device.zero(self._memory[0].address, _GATE_BYTES, stream)
        spent = []
        for _ in range(5):
            start, end = driver.Event(), driver.Event()
            start.record(pycuda_stream(stream))
            self._read(stream)
            end.record(pycuda_stream(stream))
            end.synchronize()
            spent.append(float(end.time_since(start)))
        self._reads = max(1, math.ceil(_GATE_MS / min(spent)))
        return self._reads
