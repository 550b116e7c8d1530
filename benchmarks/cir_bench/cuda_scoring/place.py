"""Where the entries of one comparison run, and how one run is timed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cir_infer.gpu.device import Device, Stream

__all__ = ["Place", "gpu"]

Launch = Callable[[Stream], object]


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

    return Place(open_device(), "cuda", _between_events)


def _between_events(launch: Launch, stream: Stream) -> float:
    import pycuda.driver as driver

    from cir_infer.gpu.context import pycuda_stream

    start, end = driver.Event(), driver.Event()
    start.record(pycuda_stream(stream))
    launch(stream)
    end.record(pycuda_stream(stream))
    end.synchronize()
    return float(end.time_since(start))
