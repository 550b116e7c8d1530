"""Cooperative launches as the driver is asked for them: names, arguments with their types, refusals."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from cir_infer.errors import DeviceError
from cir_infer.gpu import cooperative
from cir_infer.gpu.cooperative import CooperativeModule

PROTOTYPES = {
    "cuCtxGetDevice": ("CUdevice *",),
    "cuDeviceGetAttribute": ("int *", "CUdevice_attribute", "CUdevice"),
    "cuModuleLoadData": ("CUmodule *", "const void *"),
    "cuModuleGetFunction": ("CUfunction *", "CUmodule", "const char *"),
    "cuFuncSetAttribute": ("CUfunction", "CUfunction_attribute", "int"),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": ("int *", "CUfunction", "int", "size_t"),
    "cuLaunchCooperativeKernel": (
        *("CUfunction", *["unsigned int"] * 7),
        *("CUstream", "void **"),
    ),
}
"""From cuda.h."""

TYPES: dict[str, tuple[type, ...]] = {
    "int": (ctypes.c_int,),
    "unsigned int": (ctypes.c_uint,),
    "size_t": (ctypes.c_size_t,),
    "CUdevice": (ctypes.c_int,),
    "CUdevice_attribute": (ctypes.c_int,),
    "CUfunction_attribute": (ctypes.c_int,),
    "CUfunction": (ctypes.c_void_p,),
    "CUmodule": (ctypes.c_void_p,),
    "CUstream": (ctypes.c_void_p,),
    "const void *": (ctypes.c_char_p,),
    "const char *": (ctypes.c_char_p,),
    "void **": (ctypes.Array,),
}


class Structure(ctypes.Structure):
    _fields_ = (("first", ctypes.c_void_p), ("second", ctypes.c_uint32), ("third", ctypes.c_uint32))


class Driver:
    """Takes what cuda.h declares and nothing else."""

    def __init__(self, refusing: str = "", cooperative: int = 1) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._refusing = refusing
        self._cooperative = cooperative

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"too many blocks"
        return 0

    def __getattr__(self, name: str) -> Any:
        prototype = PROTOTYPES[name]

        def call(*arguments: Any) -> int:
            assert len(arguments) == len(prototype), name
            for argument, kind in zip(arguments, prototype, strict=True):
                assert kind not in TYPES or isinstance(argument, TYPES[kind]), (name, argument, kind)
            self.calls.append((name, arguments))
            if name == self._refusing:
                return 720
            self._answer(name, arguments)
            return 0

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "cuDeviceGetAttribute":
            assert arguments[1].value == 95  # CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH
            arguments[0]._obj.value = self._cooperative
        elif name == "cuOccupancyMaxActiveBlocksPerMultiprocessor":
            arguments[0]._obj.value = 2
        elif name in ("cuModuleLoadData", "cuModuleGetFunction"):
            arguments[0]._obj.value = 1 << 40 | len(self.calls)  # beyond what an int holds


def opened(monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Driver, CooperativeModule]:
    driver = Driver(**options)
    monkeypatch.setattr(cooperative.ctypes, "CDLL", lambda name: driver)
    return driver, CooperativeModule(b"kernels\0compiled", "a GPU", 65_536, 40)


def test_a_launch_is_what_the_header_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, module = opened(monkeypatch)
    function = module.function("encode_gru")
    assert function.version == module.version and len(function.version) == 16
    assert function.most_blocks(1000) == 80 and function.most_blocks(65_537) == 0
    given = Structure(1 << 41, 2, 3)
    function.launch((20, 2), 1000, given, SimpleNamespace(handle=1 << 42))
    function.launch((20, 2), 1000, given, None)
    names = [name for name, _ in driver.calls]
    assert names == [*PROTOTYPES, "cuLaunchCooperativeKernel"]
    attribute = driver.calls[4][1]
    assert attribute[1].value == 8 and attribute[2].value == 65_536  # MAX_DYNAMIC_SHARED_SIZE_BYTES
    launched = driver.calls[-2][1]
    assert launched[0].value == driver.calls[3][1][0]._obj.value
    assert [number.value for number in launched[1:8]] == [20, 2, 1, 256, 1, 1, 1000]
    assert launched[8].value == 1 << 42 and driver.calls[-1][1][8].value is None
    assert Structure.from_address(launched[9][0]).first == 1 << 41


@pytest.mark.parametrize("name", PROTOTYPES)
def test_a_refusal_of_the_driver_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DeviceError, match=rf"cannot run on a GPU: {name} answered error 720 of the driver \(too"
    ):
        _, module = opened(monkeypatch, refusing=name)
        function = module.function("encode_gru")
        function.most_blocks(1000)
        function.launch((20, 2), 1000, Structure(), None)


def test_a_gpu_without_cooperative_launches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="a GPU has no cooperative launches"):
        opened(monkeypatch, cooperative=0)


def test_versions_follow_the_compiled_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    _, module = opened(monkeypatch)
    assert CooperativeModule(b"another", "a GPU", 65_536, 40).version != module.version
