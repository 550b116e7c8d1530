"""Which device runs the graphs: probed before anything that could crash, never changed in silence."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from cir_infer.errors import DeviceError, UsageError
from cir_infer.runtime.graph import Backend, Graph

__all__ = ["DEVICES", "OpenedGraphs", "missing_gpu", "open_graphs"]

DEVICES = ("auto", "cpu", "cuda", "tensorrt")

_log = logging.getLogger(__name__)


class OpenedGraphs(NamedTuple):
    """A backend and the graphs that it loaded, by name."""

    backend: Backend
    graphs: dict[str, Graph]


def open_graphs(models: Mapping[str, bytes], device: str, threads: int | None) -> OpenedGraphs:
    """Load graphs on a device.

    Args:
        models: serialised ONNX models by graph name.
        device: "cpu", "cuda" or "tensorrt" is used or refused; "auto" takes CUDA where it works and
            the CPU elsewhere, and says through `logging` what it took.
        threads: CPU threads inside an operator; None leaves it to the backend.

    Raises:
        UsageError: an unknown device or a senseless number of threads.
        DeviceError: the device cannot be used; the message says why and what to do.
        BundleError: a model cannot be read.
    """
    if device not in DEVICES:
        raise UsageError(f"device is {device!r}; expected one of {', '.join(DEVICES)}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise UsageError(f"threads is {threads!r}; expected a whole number of at least 1, or None")
    if device != "auto":
        return _load(_OPENERS[device](threads), models)
    try:
        opened = _load(_open_cuda(threads), models)
    except DeviceError as error:
        opened = _load(_open_cpu(threads), models)
        # A GPU that stays unused deserves a warning; a machine without one does not.
        _log.log(
            logging.INFO if missing_gpu() else logging.WARNING, "device auto: taking the CPU (%s)", error
        )
    else:
        _log.info("device auto: taking CUDA through ONNX Runtime")
    return opened


@functools.cache
def missing_gpu() -> str | None:
    """Why there is no usable NVIDIA GPU, or None where there is one.

    Asks the driver library itself: the libraries above it answer a missing driver with anything from
    an empty list to a segmentation fault.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1) on this machine"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        return f"the NVIDIA driver does not start (error {status}); see nvidia-smi"
    return None if count.value else "the NVIDIA driver sees no GPU"


def _load(backend: Backend, models: Mapping[str, bytes]) -> OpenedGraphs:
    return OpenedGraphs(backend, {name: backend.load(name, model) for name, model in models.items()})


def _open_onnx(device: Literal["cpu", "cuda"], threads: int | None) -> Backend:
    try:
        from cir_infer.runtime.onnx import OnnxBackend
    except (ImportError, AttributeError) as error:
        # AttributeError is what is left after one of onnxruntime and onnxruntime-gpu was removed.
        raise DeviceError(
            f"ONNX Runtime cannot be imported ({error}); uninstall onnxruntime and "
            "onnxruntime-gpu and install one of them again"
        ) from error
    return OnnxBackend(device, threads)


def _open_cpu(threads: int | None) -> Backend:
    return _open_onnx("cpu", threads)


def _open_cuda(threads: int | None) -> Backend:
    reason = missing_gpu()
    if reason is not None:
        raise DeviceError(f"device 'cuda' cannot be used: {reason}; use device='cpu'")
    return _open_onnx("cuda", threads)


def _open_tensorrt(threads: int | None) -> Backend:  # noqa: ARG001
    raise DeviceError(
        f"device 'tensorrt' cannot be used: {missing_gpu() or 'this version runs no TensorRT plans'}; "
        "use device='cuda' or device='cpu'"
    )


_OPENERS: dict[str, Callable[[int | None], Backend]] = {
    "cpu": _open_cpu,
    "cuda": _open_cuda,
    "tensorrt": _open_tensorrt,
}
