"""Where the entries of one comparison run, and how one run is timed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cir_infer.gpu.device import Device, Stream
from cir_infer.scoring.cuda.arguments import ReadArguments

__all__ = ["Place", "gpu"]

Launch = Callable[[Stream], object]

_LEAST_GATE_BYTES = 1 << 20
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
    count. So the stream is kept busy until all is enqueued: it reads memory for as long as that takes. By one
    launch: several short ones would leave it idle between them, wherever they take less than enqueueing them.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._gate: Launch | None = None

    def __call__(self, launch: Launch, stream: Stream) -> float:
        if self._gate is None:
            self._gate = self._long_enough(stream)
        return self._between_events(launch, stream, before=self._gate)

    @staticmethod
    def _between_events(launch: Launch, stream: Stream, before: Launch = lambda _: None) -> float:
        import pycuda.driver as driver

        from cir_infer.gpu.context import pycuda_stream

        start, end = driver.Event(), driver.Event()
        before(stream)
        start.record(pycuda_stream(stream))
        launch(stream)
        end.record(pycuda_stream(stream))
        end.synchronize()
        return float(end.time_since(start))

    def _long_enough(self, stream: Stream) -> Launch:
        """What takes `_GATE_MS` or more: twice as much is read until it does, 2 GiB on an H200."""
        nbytes = _LEAST_GATE_BYTES
        gate = self._reading(nbytes, stream)
        while min(self._between_events(gate, stream) for _ in range(5)) < _GATE_MS:
            nbytes *= 2
            gate = self._reading(nbytes, stream)
        return gate

    def _reading(self, nbytes: int, stream: Stream) -> Launch:
        """One launch that reads so much memory, which lives as long as it."""
        device, blocks = self._device, 4 * self._device.multiprocessors
        memory, mixed = device.allocate(nbytes), device.allocate(4 * 256 * blocks)
        device.zero(memory.address, nbytes, stream)

        def read(on: Stream) -> None:
            arguments = ReadArguments(memory.address, mixed.address, nbytes // 16)
            device.launch("read_bytes", (blocks, 1), 0, arguments, on)

        return read
