"""TensorRT plans of a bundle, built ahead of their first use, on the device itself: no torch is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cir_infer.errors import DeviceError

__all__ = ["build_plans", "is_bundle", "require_gpu", "shown_plans"]


def is_bundle(models: Sequence[str]) -> bool:
    """Whether what is to be exported is a bundle already."""
    return len(models) == 1 and Path(models[0]).suffix == ".cir"


def require_gpu() -> None:
    """Say at once that plans cannot be built here, before minutes of exporting.

    Raises:
        DeviceError: no usable GPU.
    """
    from cir_infer.gpu.driver import missing_gpu

    reason = missing_gpu()
    if reason is not None:
        raise DeviceError(
            f"--tensorrt builds plans for the GPU at hand, and there is none ({reason}); copy the bundle to "
            "the device and run `cir-export BUNDLE --tensorrt` there"
        )


def build_plans(bundle: str | Path) -> dict[str, Any]:
    """Build what plans of a bundle are missing for this GPU; minutes.

    Returns:
        What the engine says of its backend: version, cache and, by graph, the plans.

    Raises:
        BundleError: the bundle is missing or damaged.
        DeviceError: TensorRT cannot be used, or cannot build a graph.
    """
    from cir_infer.engine import Engine

    backend = Engine(bundle, device="tensorrt", missing_plan="build").describe()["backend"]
    return dict(backend)


def shown_plans(backend: dict[str, Any]) -> str:
    """The plans for a reader: one line a graph."""
    lines = [f"plans for {backend['gpu']} ({backend['library']}) in {backend['cache']}"]
    for name, facts in backend["plans"].items():
        parity = facts.get("parity", {})
        notes = [f"built in {facts['seconds']:.0f} s"]
        notes += [f"within {parity['furthest']:.1g} of ONNX Runtime"] if parity else []
        if "placement" in facts:
            placement = facts["placement"]
            sides = ("cpu", "tensorrt", "kernel")
            times = [
                f"{side} {placement[f'{side}_ms']:.2f} ms" for side in sides if f"{side}_ms" in placement
            ]
            times += [f"not {side}: {why}" for side, why in placement["refused"].items()]
            notes.append(f"runs on {placement['chosen']} ({', '.join(times)})")
        lines.append(f"  {name:<10} {', '.join(notes)}")
    return "\n".join(lines)
