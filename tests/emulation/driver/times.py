"""Programs that time launches on a GPU whose calls and memory have given speeds; they need PyCUDA.

The module's one argument names one, which prints milliseconds. See `call_us` and `rate` in gpu.h.
"""

from __future__ import annotations

import sys

from cir_bench.cuda_scoring.place import gpu
from cir_infer.gpu.context import open_device, pycuda_stream
from cir_infer.gpu.device import Stream
from cir_infer.scoring.cuda.arguments import ReadArguments

LAUNCHES, BYTES = 7, 1 << 18
"""What is timed, and the memory that each of its launches uses."""


class Reading:
    """Launches one after the other that read a little."""

    def __init__(self) -> None:
        self.device = open_device()
        self._memory = self.device.allocate(BYTES)
        self.stream = self.device.new_stream()
        # The first launch loads the kernel, which is a call of its own.
        self.device.zero(self._memory.address, BYTES, self.stream)
        self.launch(self.stream)
        self.device.synchronize(self.stream)

    def launch(self, stream: Stream, launches: int = LAUNCHES) -> None:
        address, half = self._memory.address, BYTES // 2
        arguments = ReadArguments(address, address + half, half // 16)
        for _ in range(launches):
            self.device.launch("read_bytes", (1, 1), 0, arguments, stream)

    def between_events(self, before: int) -> float:
        """Milliseconds of the launches behind so many others, between two events."""
        import pycuda.driver as driver

        start, end = driver.Event(), driver.Event()
        self.launch(self.stream, before)
        start.record(pycuda_stream(self.stream))
        self.launch(self.stream)
        end.record(pycuda_stream(self.stream))
        end.synchronize()
        return float(end.time_since(start))


def by_the_benchmark() -> float:
    reading = Reading()
    return gpu().time(reading.launch, reading.stream)


def on_an_idle_stream() -> float:
    return Reading().between_events(0)


def behind_many_short_launches() -> float:
    return Reading().between_events(300)


PROGRAMS = {
    program.__name__: program for program in (by_the_benchmark, on_an_idle_stream, behind_many_short_launches)
}

if __name__ == "__main__":
    with open_device().active():
        print(PROGRAMS[sys.argv[1]]())
