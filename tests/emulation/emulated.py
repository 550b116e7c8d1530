"""The machine of this folder as a `Device`: builds it once, then runs the real kernels on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.gpu.gate import Gate

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "kernels" / "score" / "cuda"
RECURRENT = ROOT / "kernels" / "recurrent" / "cuda"
BUILD = ROOT / "build" / "emulation"


def build(checked: bool, kernels: Path = KERNELS) -> Path:
    """Compile the machine with kernels, unless that has been done: a shared library.

    Args:
        checked: look at every access to memory; several times slower.
        kernels: the folder of score.cu, or of recurrent.cu.
    """
    text = b"".join(path.read_bytes() for path in [*_machinery(), *sorted(kernels.glob("*.cu*"))])
    digest = hashlib.sha256(text).hexdigest()[:16]
    home = BUILD if kernels in (KERNELS, RECURRENT) else kernels
    library = home / f"{'checked' if checked else 'machine'}-{digest}.so"
    if library.exists():
        return library
    link(library, compiled([kernel_unit(checked, kernels), *machine_units(checked), faulty_unit(checked)]))
    return library


def _machinery() -> list[Path]:
    return [*sorted(HERE.glob("*.cpp")), *sorted((HERE / "include").iterdir()), Path(__file__)]


def _flags(checked: bool, watched: bool) -> list[str]:
    flags = ["-std=c++17", "-fPIC", "-Wno-unknown-pragmas", f"-I{HERE / 'include'}", "-march=native"]
    flags += ["-ffp-contract=off"]  # sums of products round as often as they say
    flags += ["-O1", "-DCIR_CHECKED"] if checked else ["-O2"]
    # Only what runs on the GPU is looked at, not the machine itself.
    return [*flags, *(["-fsanitize=thread"] if checked and watched else [])]


@dataclasses.dataclass(frozen=True)
class Unit:
    """What an object file is made of; `inputs` are the files that `source` includes."""

    home: Path
    source: Path
    flags: Sequence[str]
    inputs: Sequence[Path]


def kernel_unit(checked: bool, kernels: Path) -> Unit:
    """The kernels of a folder."""
    unit = next(kernels.glob("*.cu")).name
    extra = [f"-I{kernels}", f'-DCIR_KERNELS="{unit}"']
    home = BUILD if kernels in (KERNELS, RECURRENT) else kernels
    inputs = [*_machinery(), *sorted(kernels.glob("*.cu*"))]
    return Unit(home, HERE / "kernels.cpp", [*_flags(checked, True), *extra], inputs)


def machine_units(checked: bool) -> list[Unit]:
    """The machine itself."""
    return [
        Unit(BUILD, HERE / f"{part}.cpp", _flags(checked, False), _machinery())
        for part in ("machine", "checks")
    ]


def faulty_unit(checked: bool) -> Unit:
    """The kernels with planted mistakes."""
    return Unit(BUILD, HERE / "faulty.cpp", _flags(checked, True), _machinery())


def compiled(units: Sequence[Unit]) -> list[Path]:
    """Object files, named by all that they are made of and compiled unless they are there.

    Several processes that need the same share the work: what another is compiling is left until last.
    """
    made = [_object_of(unit) for unit in units]
    for waits in (False, True):
        for unit, path in zip(units, made, strict=True):
            if path.exists():
                continue
            unit.home.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock, contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
                if not path.exists():
                    half = path.with_suffix(f".{os.getpid()}")
                    _compile(*unit.flags, "-c", "-o", str(half), str(unit.source))
                    half.replace(path)
    return made


def _object_of(unit: Unit) -> Path:
    text = b"".join(path.read_bytes() for path in unit.inputs) + unit.source.read_bytes()
    text += "\0".join(unit.flags).encode()
    return unit.home / f"{unit.source.stem}-{hashlib.sha256(text).hexdigest()[:16]}.o"


def link(made: Path, objects: list[Path], *flags: str, shared: bool = True) -> None:
    """A shared library of object files, or a program."""
    made.parent.mkdir(parents=True, exist_ok=True)
    half = made.with_suffix(f".{os.getpid()}")
    _compile(*(["-shared"] if shared else []), *flags, "-o", str(half), *map(str, objects))
    half.replace(made)


def _compile(*arguments: str) -> None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    assert compiler is not None, "the emulation needs a C++ compiler; install g++ or set CXX"
    built = subprocess.run([compiler, *arguments], capture_output=True, text=True)
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
        ctypes.c_bool,
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
        self._checked = checked
        self._kernels = kernels
        self._machine = machine(checked, kernels)
        self._gate = Gate()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._gate.enter()
        try:
            yield
        finally:
            self._gate.leave()

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
        self._launch(self._machine, kernel, grid, shared_bytes, arguments, together=False)

    def cooperative(self, kernel: str) -> EmulatedCooperation:
        # Memory of another machine is the host's to this one: it is used as it is, and not checked.
        ours = "recurrent.cu" in [path.name for path in self._kernels.glob("*.cu")]
        return EmulatedCooperation(self, kernel, self._machine if ours else machine(self._checked, RECURRENT))

    def _launch(
        self,
        on: ctypes.PyDLL,
        kernel: str,
        grid: tuple[int, int],
        shared_bytes: int,
        arguments: ctypes.Structure,
        together: bool,
    ) -> None:
        assert shared_bytes <= self.shared_bytes, f"{kernel} asks for {shared_bytes} bytes of shared memory"
        self.launched.append(kernel)
        on.machine_fill_fresh_memory_with(self._filling)
        packed = bytes(arguments)
        said = on.machine_launch(
            kernel.encode(), *grid, shared_bytes, packed, len(packed), self._schedule, together
        )
        if said:
            raise KernelFault(said.decode())

    def record(self, stream: object) -> None:
        return None

    def wait(self, stream: object, event: object) -> None:
        pass

    def synchronize(self, stream: object) -> None:
        pass


class EmulatedCooperation:
    """A kernel whose blocks are on the machine all at once: one a multiprocessor."""

    version = "emulated"

    def __init__(self, device: EmulatedDevice, kernel: str, on: ctypes.PyDLL) -> None:
        self._device = device
        self._kernel = kernel
        self._on = on

    def most_blocks(self, shared_bytes: int) -> int:
        return self._device.multiprocessors if shared_bytes <= self._device.shared_bytes else 0

    def launch(
        self, grid: tuple[int, int], shared_bytes: int, arguments: ctypes.Structure, stream: object
    ) -> None:
        assert grid[0] * grid[1] <= self._device.multiprocessors, "blocks that wait must all be there"
        self._device._launch(self._on, self._kernel, grid, shared_bytes, arguments, together=True)
