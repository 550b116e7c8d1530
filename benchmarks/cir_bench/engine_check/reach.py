"""What the engines are meant to reach, read from the result of a check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cir_bench.engine_check.models import MAIN, MODELS, precisions_of
from cir_bench.engine_check.steps import LIMITS

__all__ = ["reached"]


def reached(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with its figure and whether it is met; both None where it was not measured."""
    half = _steps(result, MAIN, "float16")
    ratios = half.get("latency", {}).get("ratios", {})
    beside = _median(ratios, "query over query with its text encoded before")
    rows: list[tuple[str, float | None, float | None, float | None]] = [
        (
            "PyTorch eager float32 over ours, float16",
            10.0,
            None,
            _median(ratios, "torch eager float32 over query"),
        ),
        (
            "torch.compile with CUDA graphs, float16, over ours",
            1.5,
            None,
            _median(ratios, "torch compiled float16 over query"),
        ),
        ("what the text adds to a query", None, 0.05, None if beside is None else beside - 1),
        (
            "refined hit over scoring and text encoder",
            None,
            1.5,
            _median(ratios, "refined hit over scoring and text encoder"),
        ),
        *_fidelity("float16 against float32", "float16", half.get("drift", {})),
        *_fidelity(
            "artemis-scenes, float16 against float32",
            "float16",
            _steps(result, "artemis-scenes", "float16").get("drift", {}),
        ),
        ("cold start to the first answer, s", None, 2.0, half.get("cold_start", {}).get("seconds")),
    ]
    for model in MODELS:
        if "int8" not in precisions_of(model):
            continue
        for precision in ("float16", "int8"):
            parity = _steps(result, model, precision).get("parity", {})
            rows += _fidelity(f"{model}, {precision}, against ONNX Runtime on the CPU", precision, parity)
    return [
        {
            "target": what,
            "least": least,
            "most": most,
            "figure": figure,
            "met": None
            if figure is None
            else bool((least is None or figure >= least) and (most is None or figure <= most)),
        }
        for what, least, most, figure in rows
    ]


def _steps(result: Mapping[str, Any], model: str, precision: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result.get("bundles", {}).get(f"{model}-{precision}", {})
    return found


def _fidelity(
    what: str, precision: str, found: Mapping[str, Any]
) -> list[tuple[str, float | None, float | None, float | None]]:
    limits = LIMITS[precision]
    return [
        (f"{what}: worst cosine", limits.cosine, None, found.get("worst_cosine")),
        (f"{what}: top-10 agreement", limits.agreement, None, found.get("top10_agreement")),
    ]


def _median(ratios: Mapping[str, Any], name: str) -> float | None:
    median = ratios.get(name, {}).get("median")
    return None if median is None else float(median)
