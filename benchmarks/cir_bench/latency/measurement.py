"""One latency measurement, whole: stages, batches, load, cold start, memory, energy, roofline, doubts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cir_bench import trust
from cir_bench.graph_cost import graph_cost
from cir_bench.latency.cold_start import time_cold_start
from cir_bench.latency.loads import LOADS, load_curve, time_batches
from cir_bench.latency.side_by_side import compare_devices
from cir_bench.latency.stages import STAGES, time_stages
from cir_bench.latency.transfers import time_transfers, why_no_transfers
from cir_bench.latency.workload import Workload, draw_workload
from cir_bench.machine import peak_host_bytes, reset_peak_host_bytes, stamp
from cir_bench.roofline import matrix_rate, read_bandwidth
from cir_bench.sensors import Sensors, summarise_readings
from cir_bench.timing import Milliseconds, percentile, steadiness, summarise
from cir_eval.predictions import prediction_table
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import PixelInput, ScaledJpeg
from cir_infer.engine import Engine
from cir_infer.inputs.preprocess import preprocess
from cir_infer.machine.nvml import Nvml
from cir_infer.runtime.device_names import ON_GPU, ON_INTEL_GPU
from cir_infer.searcher import Searcher

__all__ = ["Settings", "measure_latency"]

_TOKENS = 20


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        bundle: the bundle's path.
        gallery: the gallery's path.
        device: as for `Engine`.
        devices: to time side by side; empty for none.
        threads: as for `Engine`.
        k: hits a query.
        seconds: for the stages; half as long for each batch size and each rate.
        images: a folder of references, None for the gallery's own.
        texts: a file of texts, None for generated ones.
        batches: batch sizes.
        rates: open-loop rates in requests a second; None visits `loads.LOADS`, empty none.
        workers: threads that answer open-loop requests.
        starts: fresh processes for the cold start; 0 for none.
    """

    bundle: Path
    gallery: Path
    device: str = "auto"
    devices: tuple[str, ...] = ()
    threads: int | None = None
    k: int = 10
    seconds: float = 10.0
    images: Path | None = None
    texts: Path | None = None
    batches: tuple[int, ...] = (1, 8, 32)
    rates: tuple[float, ...] | None = None
    workers: int = 1
    starts: int = 5


def measure_latency(settings: Settings, tell: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Measure and return the result, as plain values (docs/benchmarks.md).

    Args:
        settings: how.
        tell: called with what is being done.

    Raises:
        CirError: bundle, gallery, device or workload are not what they should be.
    """
    for device in settings.devices[1:]:  # one that cannot be used is told before minutes of measuring
        Engine(settings.bundle, device, settings.threads).close()
    engine = Engine(settings.bundle, settings.device, settings.threads)
    searcher = Searcher(engine, settings.gallery)
    bundle, snapshot = Bundle(settings.bundle), searcher.gallery.snapshot()
    workload = draw_workload(bundle, snapshot, settings.images, settings.texts)
    device = str(engine.describe()["device"])
    gpu = Nvml.open() if device in ON_GPU else None

    reset_peak_host_bytes()
    tell(f"stages, {settings.seconds:g} s")
    with Sensors(gpu) as sensors:
        samples = time_stages(searcher, workload, settings.k, settings.seconds)
    readings = summarise_readings(sensors.readings)
    each = settings.seconds / 2
    tell(f"batches of {', '.join(map(str, settings.batches))} queries, {each:g} s each")
    batches = time_batches(searcher, workload, settings.k, settings.batches, each)
    rates = settings.rates
    if rates is None:
        rates = tuple(round(1e3 / percentile(samples["query"], 50) * share, 2) for share in LOADS)
    if rates:
        tell(f"{', '.join(f'{rate:g}' for rate in rates)} requests a second, {each:g} s each")
    load = load_curve(searcher, workload, settings.k, rates, each, settings.workers)
    peak = peak_host_bytes()
    no_transfers = why_no_transfers(device)
    if no_transfers is None and engine.needs_reference:
        batch = preprocess(workload.images[0], engine.manifest.image)[None]
        samples |= time_transfers(bundle.graph("image"), device, batch, settings.seconds / 5)
    result = {
        "kind": "latency",
        **stamp(),
        "bundle": _describe(bundle, engine),
        "gallery": {
            "rows": snapshot.count,
            "dimension": snapshot.dimension,
            "row_type": str(snapshot.rows.dtype),
            "scorer": searcher.scorer.name,
        },
        "settings": {
            "k": settings.k,
            "seconds": settings.seconds,
            "threads": settings.threads,
            "workers": settings.workers,
            "workload": workload.source,
        },
        "stages": {name: summarise(samples[name]) for name in STAGES if name in samples},
        "transfers": no_transfers,
        "steadiness_ms": {name: steadiness(samples[name]) for name in ("query", "refine") if name in samples},
        "distribution_ms": {
            name: [percentile(samples[name], q) for q in range(1, 101)]
            for name in ("query", "refine")
            if name in samples
        },
        "shares_of_encoder": _shares(samples),
        "batches": batches,
        "load": load,
        "devices": _devices(workload, settings, tell),
        "cold_start": _cold_start(searcher, workload, settings, tell),
        "memory": {"peak_host_bytes": peak, "peak_device_bytes": readings.pop("peak_device_bytes", None)},
        "sensors": readings,
        "energy_per_query_joules": _per_round(readings["joules"], samples),
    }
    tell("what this machine can do")
    result["roofline"] = _roofline(result, snapshot.rows, device, settings.threads, samples)
    result["doubts"] = [
        *trust.doubts_about_machine(readings),
        *trust.doubts_about_samples("query", samples["query"]),
        *(trust.doubts_about_samples("refine", samples["refine"]) if "refine" in samples else []),
        *trust.doubts_about_roofline(result["roofline"]),
    ]
    return result


def _describe(bundle: Bundle, engine: Engine) -> dict[str, Any]:
    manifest = bundle.manifest
    costs = {name: graph_cost(bundle.graph(name).data, {"n": 1, "t": _TOKENS}) for name in manifest.graphs}
    about = engine.describe()
    return {
        "system": manifest.system,
        "precision": manifest.precision,
        "fingerprint": manifest.fingerprint,
        "bytes": bundle.path.stat().st_size,
        "image": about["image"],
        "scaled_jpeg": isinstance(manifest.image, PixelInput) and ScaledJpeg() in manifest.image.steps,
        "device": about["device"],
        "backend": about["backend"],
        "macs": {name: cost.macs for name, cost in costs.items()},
        "parameters": {name: cost.parameters for name, cost in costs.items()},
    }


def _shares(samples: dict[str, Milliseconds]) -> dict[str, float]:
    """Whole queries over the image encoder alone, medians: what everything but the encoder adds."""
    if "image" not in samples:
        return {}
    encoder = percentile(samples["image"], 50)
    return {name: percentile(samples[name], 50) / encoder for name in ("query", "refine") if name in samples}


def _cold_start(
    searcher: Searcher, workload: Workload, settings: Settings, tell: Callable[[str], object]
) -> dict[str, Any] | None:
    if settings.starts < 1:
        return None
    tell(f"{settings.starts} cold starts")
    return time_cold_start(searcher, workload, settings.k, settings.device, settings.starts)


def _devices(workload: Workload, settings: Settings, tell: Callable[[str], object]) -> dict[str, Any]:
    if not settings.devices:
        return {}
    tell(f"{', '.join(settings.devices)} by turns, {settings.seconds:g} s")
    places = settings.bundle, settings.gallery, settings.devices
    return compare_devices(*places, workload, settings.k, settings.threads, settings.seconds)


def _per_round(joules: dict[str, float], samples: dict[str, Milliseconds]) -> dict[str, float]:
    """Energy of one round of the stages (about two queries and a refined hit), idle power included."""
    return {name: value / len(samples["query"]) for name, value in joules.items()}


def _roofline(
    result: dict[str, Any], rows: Any, device: str, threads: int | None, samples: dict[str, Milliseconds]
) -> dict[str, Any]:
    """Scoring and encoder as fractions of what this machine can do, and what that predicts for others."""
    cores = threads or result["machine"]["cpu"]["cores"]
    seconds = min(1.0, result["settings"]["seconds"] / 5)
    row_bytes = sum(block.nbytes for block in rows.blocks)
    roofline: dict[str, Any] = {"row_bytes": row_bytes, "threads": cores}
    if device not in ON_GPU:
        roofline["read_bytes_per_s"] = read_bandwidth(cores, seconds)
        roofline["score_fraction"] = (
            1e3 * row_bytes / roofline["read_bytes_per_s"] / percentile(samples["score"], 50)
        )
        roofline["rows_fit_in_cache"] = row_bytes < 64 << 20
    # The rate of an Intel GPU is not measured.
    if "image" in samples and result["bundle"]["precision"] == "float32" and device not in ON_INTEL_GPU:
        macs = result["bundle"]["macs"]["image"]
        place = "cuda" if device in ON_GPU else "cpu"
        roofline["matrix_macs_per_s"] = matrix_rate(place, threads, seconds)
        roofline["encoder_fraction"] = (
            1e3 * macs / roofline["matrix_macs_per_s"] / percentile(samples["image"], 50)
        )
        if "score_fraction" in roofline:
            roofline["predictions"] = prediction_table(
                scan_bytes=row_bytes,
                # Rows that lie in a cache are read faster than memory gives them.
                scan_fraction=min(1.0, roofline["score_fraction"]),
                encoder_macs=macs,
            )
    return roofline
