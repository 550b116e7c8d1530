"""The image encoder without its transfers, and the transfers alone: through ONNX Runtime's IO binding.

A session copies what it is handed to the device and its answer back, all inside one call. With memory of the
device bound to it, the three can be timed apart. The query path itself makes one call.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np

from cir_bench.timing import Milliseconds, repeat
from cir_infer.bundle.model import Model
from cir_infer.runtime.device_names import ON_GPU, ON_INTEL_GPU
from cir_infer.runtime.graph import Array

__all__ = ["BoundEncoder", "time_transfers", "why_no_transfers"]

_BINDS = ("cpu", "cuda")
"""Devices whose memory a session may be bound to."""


def why_no_transfers(device: str) -> str | None:
    """Why a device has no stages of its own for transfers, None where it has."""
    if device in ON_INTEL_GPU:
        return f"host-to-device and device-to-host are inside the stage image: {device} moves data itself"
    if device not in ON_GPU:
        return (
            "host-to-device and device-to-host do not exist: the graphs run on the CPU and read the prepared "
            "image where it lies"
        )
    if device not in _BINDS:
        return f"host-to-device and device-to-host are inside the stage image: {device} moves data itself"
    return None


class BoundEncoder:
    """An image graph, as queries run it, with its input and output in the memory of a device.

    Args:
        model: the graph.
        device: "cuda", or "cpu", where copies are plain copies (for tests).
        batch: a prepared batch, for its shape and type.

    Raises:
        BundleError, DeviceError: the query path has no such session either.
    """

    def __init__(self, model: Model, device: str, batch: Array) -> None:
        import onnxruntime as ort

        from cir_infer.runtime.onnx import OnnxBackend

        self._weights = model.weights  # whose memory the session reads
        self._session = OnnxBackend(cast(Literal["cpu", "cuda"], device)).session("image", model)
        self._binding = self._session.io_binding()
        self._input = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), device, 0)
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, self._input)
        self._binding.bind_output(self._session.get_outputs()[0].name, device, 0)

    def upload(self, batch: Array) -> None:
        """Copy a batch of the same shape to the device."""
        self._input.update_inplace(np.ascontiguousarray(batch))

    def run(self) -> None:
        """Encode what was uploaded, and wait for it."""
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()

    def download(self) -> Array:
        """The embeddings, copied to the host."""
        copied: Array = self._binding.get_outputs()[0].numpy()
        return copied


def time_transfers(model: Model, device: str, batch: Array, seconds: float) -> dict[str, Milliseconds]:
    """The three parts, each repeated by itself.

    Args:
        model: the image graph.
        device: see `BoundEncoder`.
        batch: a prepared batch, what a query uploads.
        seconds: how long to go on, for the three together.

    Returns:
        float64 (repetitions,) milliseconds by the names of `stages.STAGES`.
    """
    bound = BoundEncoder(model, device, batch)
    calls: dict[str, Any] = {
        "host-to-device": lambda: bound.upload(batch),
        "image on device": bound.run,
        "device-to-host": bound.download,
    }
    bound.upload(batch)
    return {name: repeat(call, seconds=seconds / len(calls), at_least=30) for name, call in calls.items()}
