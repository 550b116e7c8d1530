"""The machine of this folder as a `Device`: builds it once, then runs the real kernels on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "kernels" / "score" / "cuda"


@functools.cache
def machine() -> ctypes.PyDLL:
    """The compiled machine; PyDLL, so that threads take turns as they do at a GPU's driver."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert compiler is not None, "the emulation needs a C++ compiler; install g++ or set CXX"
    sources = sorted([*HERE.rglob("*.cpp"), *HERE.rglob("*.h"), *HERE.rglob("*.cuh"), *KERNELS.glob("*.cu*")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    library = ROOT / "build" / "emulation" / f"machine-{digest}.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        half = library.with_suffix(f".{os.getpid()}")
        units = [str(path) for path in sorted(HERE.glob("*.cpp"))]
        flags = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
        includes = [f"-I{HERE / 'include'}", f"-I{KERNELS}"]
        built = subprocess.run(
            [compiler, *flags, *includes, "-o", str(half), *units], capture_output=True, text=True
        )
        assert built.returncode == 0, built.stderr[-4000:]
        half.replace(library)
    loaded = ctypes.PyDLL(str(library))
    loaded.machine_allocate.argtypes = [ctypes.c_size_t]
    loaded.machine_allocate.restype = ctypes.c_void_p
    loaded.machine_free.argtypes = [ctypes.c_void_p]
    loaded.machine_free.restype = None
    loaded.machine_fill_fresh_memory_with.argtypes = [ctypes.c_ubyte]
    loaded.machine_launch.argtypes = [
        ctypes.c_char_p,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
    ]
    loaded.machine_launch.restype = ctypes.c_char_p
    return loaded


class KernelFault(AssertionError):
    """The machine found a mistake in a kernel."""


class EmulatedMemory:
    """An allocation between two pages that must not be touched."""

    def __init__(self, nbytes: int) -> None:
        self.address = int(machine().machine_allocate(nbytes))
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))
        self._free = False

    def free(self) -> None:
        assert not self._free, "freed twice"
        self._free = True
        del self.array
        machine().machine_free(self.address)


class MappedMemory:
    """Memory of the host, seen in place."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array.reshape(-1).view(np.uint8)
        self.address = array.ctypes.data

    def free(self) -> None:
        pass


class EmulatedDevice:
    """A GPU of a few multiprocessors. `schedule` and `filling` are those of machine.cpp."""

    name = "an emulated GPU"

    def __init__(
        self,
        *,
        architecture: int = 75,
        multiprocessors: int = 2,
        shared_bytes: int = 65_536,
        integrated: bool = False,
        schedule: int = 0,
        filling: int = 0xFF,
        mappable: bool = True,
    ) -> None:
        self.architecture = architecture
        self.multiprocessors = multiprocessors
        self.shared_bytes = shared_bytes
        self.integrated = integrated
        self.launched: list[str] = []
        self._schedule = schedule
        self._filling = filling
        self._mappable = mappable

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def free_bytes(self) -> int:
        return 8 << 30

    def allocate(self, nbytes: int) -> EmulatedMemory:
        machine().machine_fill_fresh_memory_with(self._filling)
        return EmulatedMemory(nbytes)

    allocate_host = allocate

    def map_host(self, array: npt.NDArray[Any]) -> MappedMemory | None:
        return MappedMemory(array) if self._mappable else None

    def new_stream(self) -> None:
        return None

    def upload(self, address: int, array: npt.NDArray[Any], stream: object) -> None:
        source = np.ascontiguousarray(array)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)

    def download(self, array: npt.NDArray[Any], address: int, stream: object) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def zero(self, address: int, nbytes: int, stream: object) -> None:
        ctypes.memset(address, 0, nbytes)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        shared_bytes: int,
        arguments: ctypes.Structure,
        stream: object,
    ) -> None:
        assert shared_bytes <= self.shared_bytes, f"{kernel} asks for {shared_bytes} bytes of shared memory"
        self.launched.append(kernel)
        machine().machine_fill_fresh_memory_with(self._filling)
        packed = bytes(arguments)
        said = machine().machine_launch(
            kernel.encode(), *grid, shared_bytes, packed, len(packed), self._schedule
        )
        if said:
            raise KernelFault(said.decode())

    def record(self, stream: object) -> None:
        return None

    def wait(self, stream: object, event: object) -> None:
        pass

    def synchronize(self, stream: object) -> None:
        pass
