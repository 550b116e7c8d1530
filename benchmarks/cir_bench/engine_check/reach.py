"""What the engines are meant to reach, read from the result of a check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["reached"]

_MAIN = "resnet50-bigru"


def reached(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with its figure and whether it is met; both None where it was not measured."""
    half = _steps(result, "float16")
    ratios = half.get("latency", {}).get("ratios", {})
    beside = _median(ratios, "query over query with its text encoded before")
    rows = [
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
        ("float16 against float32: worst cosine", 0.9999, None, half.get("drift", {}).get("worst_cosine")),
        (
            "float16 against float32: top-10 agreement",
            0.99,
            None,
            half.get("drift", {}).get("top10_agreement"),
        ),
        ("cold start to the first answer, s", None, 2.0, half.get("cold_start", {}).get("seconds")),
    ]
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


def _steps(result: Mapping[str, Any], precision: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result.get("bundles", {}).get(f"{_MAIN}-{precision}", {})
    return found


def _median(ratios: Mapping[str, Any], name: str) -> float | None:
    median = ratios.get(name, {}).get("median")
    return None if median is None else float(median)
