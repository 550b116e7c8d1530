"""The machine of this folder as a `Device`: builds it once, then runs the real kernels on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "kernels" / "score" / "cuda"


def build(checked: bool, kernels: Path = KERNELS) -> Path:
    """Compile the machine with kernels, unless that has been done: a shared library.

    Args:
        checked: look at every access to memory; several times slower.
        kernels: the folder of score.cu.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert compiler is not None, "the emulation needs a C++ compiler; install g++ or set CXX"
    sources = sorted([*HERE.rglob("*.cpp"), *HERE.rglob("*.h"), *HERE.rglob("*.cuh"), *kernels.glob("*.cu*")])
    text = b"".join(path.read_bytes() for path in [*sources, Path(__file__)])
    digest = hashlib.sha256(text).hexdigest()[:16]
    home = ROOT / "build" / "emulation" if kernels == KERNELS else kernels
    library = home / f"{'checked' if checked else 'machine'}-{digest}.so"
    if library.exists():
        return library
    home.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-fPIC", "-Wno-unknown-pragmas", f"-I{HERE / 'include'}", f"-I{kernels}"]
    flags += ["-march=native", *(["-O1", "-DCIR_CHECKED"] if checked else ["-O3"])]
    with tempfile.TemporaryDirectory(dir=home) as folder:
        objects = []
        for unit in sorted(HERE.glob("*.cpp")):
            # Only what runs on the GPU is looked at, not the machine itself.
            watched = ["-fsanitize=thread"] if checked and unit.stem in ("kernels", "faulty") else []
            objects.append(f"{folder}/{unit.stem}.o")
            _compile(compiler, *flags, *watched, "-c", "-o", objects[-1], str(unit))
        _compile(compiler, "-shared", "-o", f"{folder}/machine.so", *objects)
        Path(folder, "machine.so").replace(library)
    return library


def _compile(*command: str) -> None:
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]


@functools.cache
def machine(checked: bool = False, kernels: Path = KERNELS) -> ctypes.PyDLL:
    """The compiled machine; PyDLL, so that threads take turns as they do at a GPU's driver."""
    loaded = ctypes.PyDLL(str(build(checked, kernels)))
    loaded.machine_allocate.argtypes = [ctypes.c_size_t]
    loaded.machine_allocate.restype = ctypes.c_void_p
    loaded.machine_free.argtypes = [ctypes.c_void_p]
    loaded.machine_free.restype = None
    loaded.machine_written.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    loaded.machine_written.restype = None
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

    def __init__(self, machine: ctypes.PyDLL, nbytes: int) -> None:
        self._machine = machine
        self.address = int(machine.machine_allocate(nbytes))
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.address))
        self._free = False

    def free(self) -> None:
        assert not self._free, "freed twice"
        self._free = True
        del self.array
        self._machine.machine_free(self.address)


class MappedMemory:
    """Memory of the host, seen in place."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array.reshape(-1).view(np.uint8)
        self.address = array.ctypes.data

    def free(self) -> None:
        pass


class EmulatedDevice:
    """A GPU of a few multiprocessors. `schedule`, `filling`: machine.cpp; `checked`: checks.cpp."""

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
        checked: bool = False,
        kernels: Path = KERNELS,
    ) -> None:
        self.architecture = architecture
        self.multiprocessors = multiprocessors
        self.shared_bytes = shared_bytes
        self.integrated = integrated
        self.launched: list[str] = []
        self._schedule = schedule
        self._filling = filling
        self._mappable = mappable
        self._machine = machine(checked, kernels)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        yield

    def free_bytes(self) -> int:
        return 8 << 30

    def allocate(self, nbytes: int) -> EmulatedMemory:
        self._machine.machine_fill_fresh_memory_with(self._filling)
        return EmulatedMemory(self._machine, nbytes)

    def allocate_host(self, nbytes: int) -> EmulatedMemory:
        memory = self.allocate(nbytes)
        self._machine.machine_written(memory.address, nbytes)  # in Python, unseen
        return memory

    def map_host(self, array: npt.NDArray[Any]) -> MappedMemory | None:
        return MappedMemory(array) if self._mappable else None

    def new_stream(self) -> None:
        return None

    def upload(self, address: int, array: npt.NDArray[Any], stream: object) -> None:
        source = np.ascontiguousarray(array)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)
        self._machine.machine_written(address, source.nbytes)

    def download(self, array: npt.NDArray[Any], address: int, stream: object) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def zero(self, address: int, nbytes: int, stream: object) -> None:
        ctypes.memset(address, 0, nbytes)
        self._machine.machine_written(address, nbytes)

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
        self._machine.machine_fill_fresh_memory_with(self._filling)
        packed = bytes(arguments)
        said = self._machine.machine_launch(
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
