"""Which device runs the graphs: probed before anything that could crash, never changed in silence."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError, UsageError, shown
from cir_infer.extras import importing, install_hint, require
from cir_infer.gpu.driver import missing_gpu
from cir_infer.inputs.arguments import checked_number, checked_word
from cir_infer.processes.collector import collector_paused
from cir_infer.processes.threads import Threads
from cir_infer.runtime.backend import Backend
from cir_infer.runtime.device_names import AUTO, DEVICES, ON_GPU
from cir_infer.runtime.graph import Graph
from cir_infer.runtime.int8_form import note_slow_form, other_runtime, refuse_other_form
from cir_infer.runtime.kept.graph_file import read_graph
from cir_infer.runtime.kept.graphs import Keeping, Kernels, load_kept, load_model
from cir_infer.runtime.kept.names import StoredGraph
from cir_infer.runtime.openvino.one_row import OneOrMany, is_apart
from cir_infer.runtime.plan_policy import PlanPolicy, PlanUnavailableError

if TYPE_CHECKING:
    from cir_infer.runtime.openvino.backend import OpenVinoBackend

__all__ = ["OpenedGraphs", "open_backend", "open_graphs"]

MOST_THREADS = 1024

_WORTH_A_THREAD = 1 << 20
"""Bytes of a model."""

_log = logging.getLogger(__name__)

Models: TypeAlias = "Mapping[str, Model | StoredGraph]"


class OpenedGraphs(NamedTuple):
    """A backend and the graphs that it loaded, by name."""

    backend: Backend
    graphs: dict[str, Graph]


def open_graphs(
    models: Models, device: str, threads: int | None, policy: PlanPolicy | None = None
) -> OpenedGraphs:
    """Load graphs on a device.

    Args:
        models: by graph name, or where they are.
        device: one of `DEVICES`. Any is used or refused; "auto" takes the
            first of TensorRT, CUDA and the CPU that works, or OpenVINO for a bundle in bfloat16, and says
            through `logging` what it took.
        threads: CPU threads inside an operator; None leaves it to the backend.
        policy: of TensorRT plans.

    Raises:
        UsageError: an unknown device or a senseless number of threads.
        DeviceError: the device cannot be used; the message says why and what to do.
        BundleError: a model cannot be read.
    """
    policy = PlanPolicy() if policy is None else policy
    checked_word("device", device, DEVICES)
    if threads is not None:
        threads = checked_number("threads", threads, instead=", or None")
        if threads > MOST_THREADS:
            raise UsageError(f"threads is {shown(threads)}; expected at most {MOST_THREADS}, or None")
    opened = _opened(models, device, threads, policy)
    note_slow_form(opened.backend.device, policy.int8_form)
    return opened


def _opened(models: Models, device: str, threads: int | None, policy: PlanPolicy) -> OpenedGraphs:
    if device == "auto" and policy.precision == "bfloat16":
        _log.info("device auto: taking OpenVINO, which alone computes in bfloat16")
        device = "openvino"
    if device == "auto":
        return _first_that_works(AUTO, models, threads, policy)
    try:
        return _load(open_backend(device, threads, policy), models, threads, policy)
    except PlanUnavailableError as error:
        if policy.missing != "onnxruntime":
            raise
        _log.warning("device %s: taking ONNX Runtime, as was asked for in this case (%s)", device, error)
        return _first_that_works(("cuda", "cpu"), models, threads, policy)


def _first_that_works(
    devices: tuple[str, ...], models: Models, threads: int | None, policy: PlanPolicy
) -> OpenedGraphs:
    refusals: list[str] = []
    for device in devices[:-1]:
        try:
            opened = _load(open_backend(device, threads, policy), models, threads, policy)
        except DeviceError as error:
            refusals.append(str(error))
        else:
            _log.info("device auto: taking %s%s", device, _because(refusals))
            return opened
    opened = _load(open_backend(devices[-1], threads, policy), models, threads, policy)
    # A GPU that stays unused deserves a warning; a machine without one does not.
    level = logging.INFO if missing_gpu() else logging.WARNING
    _log.log(level, "device auto: taking the CPU%s%s", _because(refusals), other_runtime(policy.int8_form))
    return opened


def open_backend(device: str, threads: int | None, policy: PlanPolicy) -> Backend:
    """What runs graphs on a device that is asked for by name.

    Args:
        device: not "auto".
        threads: CPU threads inside an operator; None leaves it to the backend.
        policy: of plans.

    Raises:
        DeviceError: it cannot be used here.
    """
    if policy.precision == "bfloat16" and device != "openvino":
        raise DeviceError(
            f"device {shown(device)} cannot be used: only device='openvino' computes a bfloat16 bundle in "
            "bfloat16; use that, or the float32 bundle"
        )
    return _OPENERS[device](threads, policy)


def _because(refusals: list[str]) -> str:
    return f" ({'; '.join(refusals)})" if refusals else ""


def _load(backend: Backend, models: Models, threads: int | None, policy: PlanPolicy) -> OpenedGraphs:
    """The graphs, without an NVIDIA GPU the largest beside the others: most of it is native code."""
    load = functools.partial(_loaded, backend, threads, policy.precision)
    largest = max(models, key=lambda name: models[name].size, default=None)
    if backend.device in ON_GPU or largest is None or models[largest].size < _WORTH_A_THREAD:
        return OpenedGraphs(backend, {name: load(name, model) for name, model in models.items()})
    beside = Threads(1)
    task = beside.submit(load, largest, models[largest])
    beside.close()
    try:
        others = {name: load(name, model) for name, model in models.items() if name != largest}
    finally:
        graph = task.result()
    return OpenedGraphs(backend, {name: graph if name == largest else others[name] for name in models})


def _loaded(
    backend: Backend, threads: int | None, precision: str, name: str, model: Model | StoredGraph
) -> Graph:
    if backend.device in ON_GPU:
        return backend.load(name, model if isinstance(model, Model) else model.read())
    kernels = _kernels_for(name, threads)
    if isinstance(model, Model):
        return load_model(backend, name, model, kernels)
    if is_apart(backend.device, precision, name):
        return _apart(cast("OpenVinoBackend", backend), name, model)
    return load_kept(cast(Keeping, backend), name, model, kernels)


def _apart(backend: OpenVinoBackend, name: str, stored: StoredGraph) -> Graph:
    one = load_kept(backend.one_row(), name, stored._replace(rows=1))
    batches = stored._replace(found=read_graph)  # which nobody has begun to read
    return OneOrMany(name, one, functools.partial(load_kept, backend, name, batches))


def _kernels_for(name: str, threads: int | None) -> Kernels | None:
    """Kernels of ours that were measured to be faster: those of recurrent text encoders."""
    if name != "text":
        return None
    from cir_infer.runtime.recurrent.kept_text import RecurrentKernels

    return RecurrentKernels(threads)


def _open_onnx(
    device: Literal["cpu", "cuda", "ort-tensorrt"],
    threads: int | None,
    policy: PlanPolicy,
) -> Backend:
    reason = None if device == "cpu" else missing_gpu()
    if reason is not None:
        raise DeviceError(f"device {shown(device)} cannot be used: {reason}; use device='cpu'")
    if device == "ort-tensorrt":
        refuse_other_form(device, policy.int8_form)
    with importing("ONNX Runtime", _broken_onnxruntime), collector_paused():
        from cir_infer.runtime.onnx import OnnxBackend
    return OnnxBackend(device, threads)


def _broken_onnxruntime(reason: str) -> DeviceError:
    return DeviceError(
        f"ONNX Runtime cannot be imported ({reason}); uninstall onnxruntime and "
        "onnxruntime-gpu and install one of them again"
    )


def _broken_openvino(reason: str) -> DeviceError:
    return DeviceError(
        f"openvino cannot be imported ({reason}); install it again with "
        f"{install_hint('openvino')}, or use device='cpu'"
    )


def _broken_tensorrt(reason: str) -> DeviceError:
    return DeviceError(
        f"device 'tensorrt' cannot be used: {reason}; install TensorRT 8.6 or later for this Python "
        "(docs/deploy.md), or use device='cuda' or device='cpu'"
    )


def _open_openvino(
    device: Literal["openvino", "openvino-gpu"], threads: int | None, policy: PlanPolicy
) -> Backend:
    require(f"device {device!r}", "openvino", error=DeviceError)
    with importing("openvino", _broken_openvino), collector_paused():
        from cir_infer.runtime.openvino.backend import OpenVinoBackend
    return OpenVinoBackend(threads, policy.precision, device, policy.tokens)


def _open_tensorrt(threads: int | None, policy: PlanPolicy) -> Backend:
    reason = missing_gpu()  # TensorRT's runtime crashes without a driver
    if reason is not None:
        raise DeviceError(f"device 'tensorrt' cannot be used: {reason}; use device='cpu'")
    refuse_other_form("tensorrt", policy.int8_form)
    from cir_infer.gpu.context import open_gpu

    gpu = open_gpu(0)
    with importing("TensorRT", _broken_tensorrt):
        from cir_infer.runtime.tensorrt.backend import TensorRTBackend
    return TensorRTBackend(policy, threads, gpu)


_OPENERS: dict[str, Callable[[int | None, PlanPolicy], Backend]] = {
    "cpu": functools.partial(_open_onnx, "cpu"),
    "cuda": functools.partial(_open_onnx, "cuda"),
    "ort-tensorrt": functools.partial(_open_onnx, "ort-tensorrt"),
    "openvino": functools.partial(_open_openvino, "openvino"),
    "openvino-gpu": functools.partial(_open_openvino, "openvino-gpu"),
    "tensorrt": _open_tensorrt,
}
