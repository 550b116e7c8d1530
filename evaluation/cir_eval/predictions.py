"""What is to be expected of devices that were not at hand. Predicted, never measured, and labelled so.

    scoring: bytes of the rows / (published bandwidth x the fraction of the read bandwidth reached here)
    encoder: not before multiply-accumulates / published rate

Scoring is bound by memory, so its fraction of the roofline carries over as far as launch costs and caches
allow. An encoder's fraction of the peak does not carry over from a CPU to a GPU, and one image fills a
large GPU badly, so for encoders only the floor is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["DEVICES", "Device", "encoder_floor", "predict_scan", "prediction_table"]


@dataclass(frozen=True)
class Device:
    """Published figures of a device (NVIDIA's data sheets), at its highest power mode.

    Attributes:
        name: its name.
        bandwidth: memory bandwidth, bytes a second.
        float32: multiply-accumulates a second of its CUDA cores in float32.
        float16: multiply-accumulates a second of its tensor cores in float16, dense.
    """

    name: str
    bandwidth: float
    float32: float
    float16: float


# float32: 2 x CUDA cores x boost clock operations, halved to multiply-accumulates. float16: a quarter of the
# published sparse int8 operations of the GPU alone (without DLA) for Orin, a quarter of sparse float8 for
# Thor, the published dense float16 rate for T4; all halved likewise.
DEVICES = (
    Device("T4", 320e9, 4.05e12, 32.5e12),
    Device("Jetson Orin Nano 8GB (15 W)", 68e9, 0.64e12, 5.0e12),
    Device("Jetson Orin Nano 8GB Super (MAXN)", 102e9, 1.04e12, 8.4e12),
    Device("Jetson Orin NX 16GB", 102.4e9, 0.94e12, 7.5e12),
    Device("Jetson AGX Orin 64GB", 204.8e9, 2.66e12, 21.2e12),
    Device("Jetson AGX Thor (T5000)", 273e9, 4.0e12, 129e12),
)
"""Devices that the project is meant for."""


def predict_scan(device: Device, row_bytes: float, fraction: float) -> float:
    """Milliseconds to score rows of so many bytes once, at `fraction` of the read bandwidth."""
    return 1e3 * row_bytes / (device.bandwidth * fraction)


def encoder_floor(device: Device, macs: float, precision: str) -> float:
    """Milliseconds that so many multiply-accumulates take at the published rate of a precision."""
    rate = device.float16 if precision == "float16" else device.float32
    return 1e3 * macs / rate


def prediction_table(*, scan_bytes: float, scan_fraction: float, encoder_macs: float) -> list[dict[str, Any]]:
    """One entry a device, labelled as predicted.

    Args:
        scan_bytes: of the rows that a query reads.
        scan_fraction: of the read bandwidth, measured.
        encoder_macs: of one image.
    """
    return [
        {
            "device": device.name,
            "kind": "predicted",
            "scan_ms": predict_scan(device, scan_bytes, scan_fraction),
            "encoder_float32_floor_ms": encoder_floor(device, encoder_macs, "float32"),
            "encoder_float16_floor_ms": encoder_floor(device, encoder_macs, "float16"),
        }
        for device in DEVICES
    ]
