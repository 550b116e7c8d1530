"""When a figure is not to be trusted, and why: every reason in a sentence.

Thresholds are deliberately plain constants; a report prints the sentence next to the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cir_bench.timing import percentile, steadiness

__all__ = ["doubts_about_machine", "doubts_about_roofline", "doubts_about_samples"]

_SAMPLES_BEYOND_A_PERCENTILE = 5
_DRIFT = 1.15
_CLOCK_SPREAD = 1.05
_NEIGHBOUR_CORES = 0.15
_STOLEN_CORES = 0.02
_BEYOND_A_ROOF = 1.1


def doubts_about_samples(name: str, samples_ms: Sequence[float] | np.ndarray[Any, Any]) -> list[str]:
    """Too few samples for the percentiles that are printed, or a latency that drifts.

    Args:
        name: what was timed.
        samples_ms: latencies in order.
    """
    doubts = []
    count = len(samples_ms)
    needed = _SAMPLES_BEYOND_A_PERCENTILE * 100
    if count < needed:
        doubts.append(
            f"{name}: {count} samples; p99 needs {needed} to have {_SAMPLES_BEYOND_A_PERCENTILE} beyond it"
        )
    if count >= 20:
        medians = steadiness(samples_ms)
        if max(medians) > _DRIFT * min(medians):
            doubts.append(
                f"{name}: the median of a tenth of the run moved between {min(medians):.3g} and "
                f"{max(medians):.3g} ms; the latency is not steady"
            )
        tail = percentile(samples_ms, 99) / percentile(samples_ms, 50)
        if tail > 3:
            doubts.append(f"{name}: p99 is {tail:.1f} times the median; something interrupts")
    return doubts


def doubts_about_machine(readings: Mapping[str, Any]) -> list[str]:
    """Unsteady clocks, throttling, neighbours: from `sensors.summarise_readings`."""
    doubts = []
    for clock, span in readings["mhz"].items():
        if span["min"] and span["max"] > _CLOCK_SPREAD * span["min"]:
            doubts.append(
                f"the {clock} clock moved between {span['min']:.0f} and {span['max']:.0f} MHz; "
                "fix it for comparable figures"
            )
    if readings["throttling"]:
        doubts.append(f"clocks were held down: {', '.join(readings['throttling'])}")
    if readings["others_cores"] > _NEIGHBOUR_CORES:
        doubts.append(
            f"other processes used {readings['others_cores']:.2f} cores meanwhile; measure on a quiet machine"
        )
    if readings["stolen_cores"] > _STOLEN_CORES:
        doubts.append(
            f"the hypervisor withheld {readings['stolen_cores']:.2f} cores meanwhile; latencies include that"
        )
    return doubts


def doubts_about_roofline(roofline: Mapping[str, Any]) -> list[str]:
    """Roofs that were exceeded, and so were measured while something else ran."""
    reached = {"the image encoder, of matrix products": roofline.get("encoder_fraction")}
    if not roofline.get("rows_fit_in_cache"):
        reached["scoring, of reading"] = roofline.get("score_fraction")
    return [
        f"{name}: {fraction:.2f}; what a machine can do was measured while something slowed it down"
        for name, fraction in reached.items()
        if fraction is not None and fraction > _BEYOND_A_ROOF
    ]
