"""Int8 graphs are made for a CPU or for TensorRT, and no form serves both (docs/precision.md)."""

from __future__ import annotations

import logging

from cir_infer.errors import DeviceError, shown
from cir_infer.extras import is_installed

__all__ = ["note_slow_form", "other_runtime", "refuse_other_form"]

_log = logging.getLogger(__name__)

_CONVERT = "cir-export FLOAT32.cir --precision int8 --calibrate DIR"


def refuse_other_form(device: str, form: str | None) -> None:
    """Before TensorRT is shown graphs that it cannot read.

    Args:
        device: that was asked for; it runs TensorRT.
        form: of the bundle's int8 graphs; None where they are not int8 or do not say.

    Raises:
        DeviceError: they were made for something else.
    """
    if form not in (None, "tensorrt"):
        raise DeviceError(
            f"device {shown(device)} cannot be used: the bundle's int8 graphs have the form {shown(form)}; "
            f"expected 'tensorrt', the only one it reads; make that with `{_CONVERT} --int8-for tensorrt`, "
            "or use device='cpu'"
        )


def other_runtime(form: str | None) -> str:
    """What "auto" says of OpenVINO where it took ONNX Runtime, which survives a fork.

    Measured with ResNet-50 in int8: the encoder takes 0.72 of the time there, a query 0.85.
    """
    if form != "cpu" or not is_installed("openvino"):
        return ""
    return "; device='openvino' may run these int8 graphs faster, to slightly other rows (docs/deploy.md)"


def note_slow_form(device: str, form: str | None) -> None:
    """Say where the CPU runs the form for TensorRT: its answers are right, and float32 is faster.

    Measured with ResNet-50 and the scenes model, one thread: 0.69 and 0.59 of float32's speed.
    """
    if device == "cpu" and form == "tensorrt":
        _log.warning(
            "the bundle's int8 graphs have the form 'tensorrt', which the CPU runs slower than float32 "
            "(docs/precision.md); make the form for the CPU with `%s`",
            _CONVERT,
        )
