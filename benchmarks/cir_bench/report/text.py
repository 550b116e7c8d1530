"""Results on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cir_bench.latency.cold_start import STEPS
from cir_bench.latency.stages import STAGES
from cir_infer.console.figures import change
from cir_infer.console.tables import format_table

__all__ = [
    "accuracy_text",
    "compare_text",
    "doubts_text",
    "latency_text",
    "machine_line",
    "scored_rows",
    "scoring_kind",
    "significant",
    "table7_text",
]


def scored_rows(result: Mapping[str, Any]) -> str:
    """The size of a scoring benchmark: rows x dimensions, or items x vectors of each x dimensions."""
    sizes = (f"{result['rows']:,}", *([result["tokens"]] if "tokens" in result else []), result["dim"])
    return " x ".join(str(size) for size in sizes)


def scoring_kind(name: str) -> str:
    """What an entry of a scoring benchmark is: "ours", an "other" way, or a "reference" that reads bytes."""
    if name.startswith("cir/"):
        return "ours"
    return "reference" if "roofline" in name or name.startswith("read/") or name == "torch/copy" else "other"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, never in powers of ten: 0.0123, 1.23, 123, 12300."""
    if value == 0:
        return "0"
    places = max(0, digits - 1 - int(f"{abs(value):e}".split("e")[1]))
    rounded = float(f"{value:.{digits - 1}e}")
    return f"{rounded:,.{places}f}"


def machine_line(result: Mapping[str, Any]) -> str:
    """The machine in a line."""
    machine = result["machine"]
    cpu = machine.get("cpu", {})
    parts = [str(machine.get("name", "an unnamed machine"))]
    if cpu.get("cores"):
        parts.append(f"{cpu['cores']} cores")
    jetson = machine.get("jetson", {})
    if jetson.get("power_mode"):
        parts.append(f"power mode {jetson['power_mode']}, L4T {jetson['l4t']}")
    parts += [f"{gpu['name']}, driver {gpu['driver']}" for gpu in machine.get("gpus", [])]
    return ", ".join(dict.fromkeys(parts))


def doubts_text(result: Mapping[str, Any]) -> list[str]:
    """One line for each reason not to trust the figures."""
    return [f"warning: {doubt}" for doubt in result.get("doubts", [])]


def latency_text(result: Mapping[str, Any]) -> str:
    """A latency result as tables."""
    bundle, gallery = result["bundle"], result["gallery"]
    backend = bundle["backend"]
    lines = [
        f"{bundle['system']} {bundle['precision']}, {_shape(bundle['image'])}, on {bundle['device']} "
        f"({backend.get('library', '')}); {gallery['rows']:,} rows x {gallery['dimension']} "
        f"{gallery['row_type']}, scorer {gallery['scorer']}, k = {result['settings']['k']}",
        f"{machine_line(result)}; commit {result['commit']}; {result['settings']['workload']}",
        "",
    ]
    rows = [
        [name, *(significant(stage[f"{key}_ms"]) for key in _COLUMNS), str(stage["samples"]), STAGES[name]]
        for name, stage in result["stages"].items()
    ]
    header = ["ms", *_COLUMNS, "samples", "what"]
    lines += [format_table(header, rows, right=range(1, 7)), ""]
    if result.get("transfers"):
        lines.append(result["transfers"])
    for name, share in result["shares_of_encoder"].items():
        lines.append(f"{name}: {share:.3f} of the image encoder's own time")
    if result.get("devices"):
        lines += ["", _devices(result["devices"])]
    lines += ["", _batches(result["batches"])]
    if result["load"]:
        lines += ["", _load(result["load"])]
    if result["cold_start"]:
        steps = result["cold_start"]["steps_ms"]
        parts = ", ".join(f"{name} {significant(steps[name])}" for name in STEPS if name in steps)
        total = significant(result["cold_start"]["to_first_answer_ms"])
        lines += ["", f"cold start to the first answer: {total} ms ({parts})"]
    lines += ["", *_limits(result), *doubts_text(result)]
    return "\n".join(lines)


_COLUMNS = ("p50", "p90", "p95", "p99", "max")


def _shape(image: list[int]) -> str:
    return f"{image[0]} features" if len(image) == 1 else f"{image[1]} x {image[0]} pixels"


def _devices(devices: Mapping[str, Any]) -> str:
    first = next(iter(devices))
    rows = []
    for device, found in devices.items():
        answers = found["answers"]
        for part in (name for name in ("query", "image", "text") if name in found):
            of = found[part]["of_first"]
            spread = f"{significant(of['median'])}x ({significant(of['p10'])} to {significant(of['p90'])})"
            rows.append([device, part, significant(found[part]["p50_ms"]), spread])
        near = "" if answers["cosine_worst"] is None else f"; worst cosine {answers['cosine_worst']:.6f}"
        if answers.get("furthest") is not None:  # reports of before know none
            near += f", {answers['furthest']:.2g} of an embedding apart"
        rows[-1].append(f"{answers['same_first_k']:.0%} of {answers['queries']} queries alike{near}")
    table = [[*row, *[""] * (5 - len(row))] for row in rows]
    return format_table(["device", "part", "p50 ms", f"{first} takes", "answers"], table, right=[2])


def _batches(batches: list[dict[str, Any]]) -> str:
    rows = [
        [
            str(batch["size"]),
            significant(batch["per_query_ms"]),
            significant(batch["throughput_per_s"]),
            significant(batch["batch"]["p99_ms"]),
        ]
        for batch in batches
    ]
    return format_table(["batch", "ms a query", "queries/s", "p99 of a batch, ms"], rows, right=range(4))


def _load(points: list[dict[str, Any]]) -> str:
    rows = [
        [
            significant(point["rate_per_s"]),
            significant(point["throughput_per_s"]),
            *(significant(point["latency"][f"{key}_ms"]) for key in ("p50", "p99", "max")),
            significant(point["service"]["p50_ms"]),
            "" if point["kept_up"] else "fell behind",
        ]
        for point in points
    ]
    header = ["requests/s", "answered/s", "p50", "p99", "max", "without waiting", ""]
    return format_table(header, rows, right=range(6))


def _limits(result: Mapping[str, Any]) -> list[str]:
    roofline, memory = result["roofline"], result["memory"]
    lines = []
    if "score_fraction" in roofline:
        cached = " (rows this few lie in the cache)" if roofline["rows_fit_in_cache"] else ""
        lines.append(
            f"scoring reaches {roofline['score_fraction']:.2f} of the "
            f"{roofline['read_bytes_per_s'] / 1e9:.1f} GB/s that {roofline['threads']} threads read "
            f"here{cached}"
        )
    if "encoder_fraction" in roofline:
        lines.append(
            f"the image encoder reaches {roofline['encoder_fraction']:.2f} of the "
            f"{roofline['matrix_macs_per_s'] / 1e9:.0f} GMAC/s of matrix products here"
        )
    if memory["peak_host_bytes"]:
        lines.append(f"peak host memory {memory['peak_host_bytes'] / 2**20:.0f} MiB")
    if memory["peak_device_bytes"]:
        lines.append(f"peak device memory {memory['peak_device_bytes'] / 2**20:.0f} MiB, everyone's")
    lines += [f"{name}: {watts:.1f} W" for name, watts in result["sensors"]["watts"].items()]
    if roofline.get("predictions"):
        rows = [
            [
                entry["device"],
                significant(entry["scan_ms"]),
                f"> {significant(entry['encoder_float32_floor_ms'])}",
                f"> {significant(entry['encoder_float16_floor_ms'])}",
            ]
            for entry in roofline["predictions"]
        ]
        header = ["predicted, not measured", "scoring, ms", "encoder float32, ms", "encoder float16, ms"]
        lines += ["", format_table(header, rows, right=range(1, 4)), ""]
    return lines


def accuracy_text(result: Mapping[str, Any]) -> str:
    """An accuracy result as a table, one row a part."""
    bundle, protocol = result["bundle"], result["protocol"]
    lines = [
        f"{bundle['system']} {bundle['precision']} on {bundle['device']}, rows "
        f"{result['settings']['row_type']}; {protocol['name']}, split {protocol['split']}; "
        f"commit {result['commit']}",
        f"protocol: {protocol['source']}",
        "",
    ]
    if "measure" not in result:
        return "\n".join([*lines, "no answers are published for this split; nothing to measure"])
    names = list(result["mean"])
    rows = [
        [part["name"], f"{part['rows']:,}", f"{part['queries']:,}", *_metrics(part["metrics"], names)]
        for part in result["parts"]
    ]
    if len(rows) > 1:
        rows.append(["mean", "", "", *_metrics(result["mean"], names)])
        rows.append(["all queries", "", "", *_metrics(result["pooled"], names)])
    if "alone" in result:
        for half, found in result["alone"].items():
            rows.append([f"{half} alone", "", "", *_metrics(found, names)])
        rows.append(["composition gain", "", "", *_metrics(result["composition_gain"], names)])
    if "paraphrases" in result:
        found = result["paraphrases"]
        rows.append(["paraphrase spread", "", f"{found['queries']:,}", *_metrics(found["spread"], names)])
    header = ["", "gallery", "queries", *(name.replace("_", " ") for name in names)]
    measure = result["measure"]
    lines += [
        format_table(header, rows, right=range(1, len(header))),
        "",
        f"measure, mean of {' and '.join(measure['metrics'])}: {measure['value']:.2f}",
    ]
    if "runs" in result:
        runs = result["runs"]
        figures = [
            f"{name} {mean:.2f} ± {runs['deviation'][name]:.2f}" for name, mean in runs["mean"].items()
        ]
        lines += ["", f"over {len(runs['bundles'])} trainings: {', '.join(figures)}"]
    if "drift" in result:
        lines += ["", *_drift(result["drift"])]
    return "\n".join([*lines, *doubts_text(result)])


def _metrics(metrics: Mapping[str, float], names: list[str]) -> list[str]:
    return [f"{metrics[name]:.2f}" if name in metrics else "" for name in names]


def _drift(drift: Mapping[str, Any]) -> list[str]:
    agreement, cosine = drift["top10_agreement"], drift["embedding_cosine"]
    lines = [
        f"against {drift['against']['precision']} on {drift['against']['device']}: first ten agree "
        f"{100 * agreement['mean']:.2f}% (worst query {100 * agreement['worst']:.0f}%), same first "
        f"{100 * drift['same_top1']:.2f}%, embeddings' cosine {cosine['mean']:.6f} "
        f"(worst {cosine['worst']:.6f})"
    ]
    for part, metrics in drift["metrics"].items():
        changes = ", ".join(f"{n} {change(d)}" for n, d in metrics.items() if n.startswith("R"))
        lines.append(f"  {part}: {changes} points")
    return lines


def compare_text(result: Mapping[str, Any]) -> str:
    """A comparison as one table for each of its parts."""
    bundle, settings = result["bundle"], result["settings"]
    lines = [
        f"{bundle['system']} {bundle['precision']}, {_shape(bundle['image'])}, on {bundle['device']}; "
        f"{settings['rows']:,} rows, k = {settings['k']}, {settings['threads']} threads; "
        f"verified equal first: {result['verified']}",
        f"{machine_line(result)}; commit {result['commit']}",
    ]
    for name, ways in result["comparisons"].items():
        rows = [
            [
                way,
                significant(found["p50_ms"]),
                significant(found["p99_ms"]),
                significant(found["times_ours"]["median"]),
                f"{significant(found['times_ours']['p10'])} to {significant(found['times_ours']['p90'])}",
            ]
            for way, found in ways.items()
        ]
        lines += [
            "",
            format_table([name, "p50 ms", "p99 ms", "x ours", "middle 80%"], rows, right=range(1, 5)),
        ]
    left_out = [f"left out: {way}: {why}" for way, why in result.get("left_out", {}).items()]
    return "\n".join([*lines, *left_out, *([""] if result["doubts"] else []), *doubts_text(result)])


def table7_text(result: Mapping[str, Any]) -> str:
    """The replayed table, the paper's beside it."""
    settings, encoders, paper = result["settings"], result["encoders"], result["paper"]
    base = paper["encoders"]["seconds"]
    queries, images = sum(settings["queries"].values()), sum(settings["galleries"].values())
    rows = [
        [
            "encoders alone",
            f"{encoders['giga_macs']:.3f}",
            f"{encoders['mega_parameters']:.2f}",
            significant(encoders["seconds"]),
            "",
            f"{base:.2f} s",
        ]
    ]
    for name, system in result["systems"].items():
        known = paper[name]["seconds"]
        for way, label in (("authors", "the authors' way"), ("ours", system["scorer"])):
            added = system[way]["seconds"]
            rows.append(
                [
                    f"{name}, {label}",
                    f"+{system['giga_macs']:.3f}",
                    f"+{system['mega_parameters']:.2f}",
                    significant(encoders["seconds"] + added),
                    f"+{significant(added)}",
                    f"+{known - base:.2f} s" if way == "authors" and known is not None else "",
                ]
            )
    header = ["", "GMAC", "M parameters", "total s", "scoring adds, s", "paper, T4"]
    lines = [
        f"{settings['data']}: {images:,} images, {queries:,} queries; {settings['device']}, "
        f"{settings['threads']} threads",
        f"{machine_line(result)}; commit {result['commit']}",
        "",
        format_table(header, rows, right=range(1, 6)),
        "",
    ]
    for name, system in result["systems"].items():
        lines.append(f"{name}: the authors' way takes {significant(system['authors_over_ours'])} times ours")
    return "\n".join([*lines, *doubts_text(result)])
