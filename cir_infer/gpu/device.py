"""What the CUDA scorer needs of a GPU. `context` gives it through PyCUDA, tests through an emulation."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["THREADS", "CooperativeKernel", "Device", "HostMemory", "Memory", "Replay", "Stream"]

THREADS = 256
"""Threads of a block: every kernel of ours is compiled for so many."""

Stream = Any
"""Opaque: what `Device.new_stream` gave, or a PyCUDA stream of the caller's."""


class Memory(Protocol):
    """Memory of the GPU."""

    @property
    def address(self) -> int:
        """As kernels see it."""
        ...

    def free(self) -> None:
        """Give it back. Nothing may use it any more."""
        ...


class HostMemory(Memory, Protocol):
    """Page-locked memory of the host that kernels read and write in place."""

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The same bytes as the host sees them."""
        ...


class Replay(Protocol):
    """Captured work."""

    def launch(self) -> None:
        """Enqueue all of it again, on the stream it was captured from."""
        ...

    def close(self) -> None:
        """Let go of it; no launch may be under way."""
        ...


class CooperativeKernel(Protocol):
    """A kernel whose blocks wait for one another, so that all must be on the GPU at once."""

    @property
    def version(self) -> str:
        """Another one for every change of the compiled kernel."""
        ...

    def most_blocks(self, shared_bytes: int) -> int:
        """How many blocks of 256 threads fit the GPU at once; 0 if a block does not fit."""
        ...

    def launch(
        self, grid: tuple[int, int], shared_bytes: int, arguments: ctypes.Structure, stream: Stream
    ) -> None:
        """Starts it with blocks of 256 threads.

        Raises:
            DeviceError: the blocks do not fit the GPU at once.
        """
        ...


class Device(Protocol):
    """One GPU. Every method but `active` must be called inside `active()`."""

    name: str
    architecture: int
    """Compute capability times ten, e.g. 90."""
    multiprocessors: int
    shared_bytes: int
    """Most shared memory of one block."""
    integrated: bool
    """Whether host and GPU share their memory, as on a Jetson."""

    def active(self) -> AbstractContextManager[object]:
        """Makes the GPU's primary context current in this thread."""
        ...

    def free_bytes(self) -> int:
        """GPU memory that is free now."""
        ...

    def allocate(self, nbytes: int) -> Memory:
        """GPU memory, at an address that is a multiple of 256."""
        ...

    def allocate_host(self, nbytes: int) -> HostMemory:
        """Page-locked host memory that the GPU can reach."""
        ...

    def map_host(self, array: npt.NDArray[Any]) -> HostMemory | None:
        """Makes existing host memory reachable, or None where the driver refuses."""
        ...

    def new_stream(self) -> Stream:
        """A stream of its own."""
        ...

    def upload(self, address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        """Copies to the GPU. Page-locked sources must stay untouched until the stream has passed."""
        ...

    def download(self, array: npt.NDArray[Any], address: int, stream: Stream) -> None:
        """Copies from the GPU, done when this returns."""
        ...

    def zero(self, address: int, nbytes: int, stream: Stream) -> None:
        """Sets bytes to 0."""
        ...

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        shared_bytes: int,
        arguments: ctypes.Structure,
        stream: Stream,
    ) -> None:
        """Starts a kernel with blocks of 256 threads."""
        ...

    def cooperative(self, kernel: str) -> CooperativeKernel:
        """A kernel of kernels/recurrent/cuda.

        Raises:
            DeviceError: it was not compiled, or not for this GPU, or the GPU has no cooperative launches.
        """
        ...

    def handle(self, stream: Stream) -> int:
        """The driver's own handle of a stream, for libraries that enqueue on it."""
        ...

    def capture(self, stream: Stream, enqueue: Callable[[], None]) -> Replay:
        """What `enqueue` puts on the stream, as one CUDA graph instead of being run.

        Raises:
            DeviceError: the driver cannot capture it.
        """
        ...

    def record(self, stream: Stream) -> Any:
        """An event: the point that the stream has reached."""
        ...

    def wait(self, stream: Stream, event: Any) -> None:
        """Makes the stream wait for an event of another one."""
        ...

    def synchronize(self, stream: Stream) -> None:
        """Returns when the stream has done all its work."""
        ...
