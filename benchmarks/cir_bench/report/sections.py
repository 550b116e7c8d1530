"""What the page shows of each kind of result."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cir_bench.latency.cold_start import STEPS
from cir_bench.latency.stages import STAGES
from cir_bench.report.svg import Bar, Line, bars, lines
from cir_bench.report.text import scored_rows, scoring_kind, significant
from cir_infer.console.figures import change, counted

__all__ = ["ORDER", "across", "content", "heading"]

ORDER = ("latency", "compare", "scoring", "table7", "accuracy")
"""Kinds of results in the order of the page."""

Result = Mapping[str, Any]


def heading(result: Result) -> str:
    """A result's title."""
    bundle = result.get("bundle", {})
    kind = result["kind"]
    if kind == "scoring":
        queries = counted(result["queries"], "query", "queries")
        index = any("linearised" in entry["name"] for entry in result["results"])
        return f"Scoring: {scored_rows(result)}, {queries}{', with an index' if index else ''}"
    if kind == "table7":
        return "Table 7 of the ARTEMIS paper, replayed"
    if kind == "accuracy":
        rows = result["settings"]["row_type"]
        return (
            f"Accuracy: {bundle['system']} {bundle['precision']}, {rows} rows, {result['protocol']['name']}"
        )
    if kind == "compare":
        return f"Comparison: {bundle['system']}, {_picture(bundle)}, {result['settings']['rows']:,} rows"
    rows = f"{result['gallery']['rows']:,} rows"
    return f"Latency: {bundle['system']} {bundle['precision']}, {_decoded(result)}, {rows}"


def _decoded(result: Result) -> str:
    """The size of what a query decodes, where it was measured, and of what the encoder sees."""
    given = re.search(r"\d+ x \d+", str(result["settings"].get("workload", "")))
    return f"{given[0]} to {_picture(result['bundle'])}" if given else _picture(result["bundle"])


def content(result: Result) -> str:
    """A result's tiles, plots and tables."""
    return _CONTENT[result["kind"]](result)


def across(results: Sequence[Result]) -> str:
    """Latencies of all machines and commits side by side, where there are several."""
    found = [result for result in results if result["kind"] == "latency"]
    if len(found) < 2:
        return ""
    items = [
        Bar(
            f"{result['machine'].get('name', '?')} {str(result['commit'])[:7]} {_decoded(result)}",
            result["stages"]["query"]["p50_ms"],
            f"{significant(result['stages']['query']['p50_ms'])} ms",
            result["stages"]["query"]["p10_ms"],
            result["stages"]["query"]["p99_ms"],
            "ours",
        )
        for result in found
    ]
    return f"<section><h2>One query, across machines and commits</h2>{bars(items, 'ms, median')}</section>\n"


def _latency(result: Result) -> str:
    stages, load, cold = result["stages"], result["load"], result["cold_start"]
    tiles = [("one query, median", f"{significant(stages['query']['p50_ms'])} ms")]
    tiles.append(("one query, p99", f"{significant(stages['query']['p99_ms'])} ms"))
    if "refine" in stages:
        tiles.append(("refined hit, median", f"{significant(stages['refine']['p50_ms'])} ms"))
    best = max(batch["throughput_per_s"] for batch in result["batches"])
    tiles.append(("most queries a second", significant(best)))
    if "query" in result["shares_of_encoder"]:
        tiles.append(("query over image encoder", f"{result['shares_of_encoder']['query']:.3f}"))
    if cold:
        tiles.append(("cold start to an answer", f"{significant(cold['to_first_answer_ms'])} ms"))
    if result["memory"]["peak_host_bytes"]:
        tiles.append(("peak host memory", f"{result['memory']['peak_host_bytes'] / 2**20:,.0f} MiB"))
    for name, joules in result["energy_per_query_joules"].items():
        tiles.append((f"energy of a round, {name}", f"{significant(joules)} J"))
    gallery = result["gallery"]
    note = (
        f"{gallery['rows']:,} rows x {gallery['dimension']} {gallery['row_type']}, "
        f"scorer {gallery['scorer']}, k = {result['settings']['k']}; {result['settings']['workload']}"
    )
    parts = [_tiles(tiles), f"<p class='sub'>{html.escape(note)}</p>", "<h3>Stages</h3>"]
    items = [
        Bar(
            name,
            stage["p50_ms"],
            f"{significant(stage['p50_ms'])} ms",
            stage["p10_ms"],
            stage["p99_ms"],
            "ours" if name in ("query", "refine") else "other",
        )
        for name, stage in stages.items()
    ]
    parts.append(bars(items, "ms, median; logarithmic", logarithmic=True))
    parts.append(
        _table(
            ["stage", "p50", "p90", "p95", "p99", "max", "samples", "what"],
            [
                [
                    name,
                    *(significant(stage[f"{q}_ms"]) for q in ("p50", "p90", "p95", "p99", "max")),
                    f"{stage['samples']:,}",
                    STAGES.get(name, ""),
                ]
                for name, stage in stages.items()
            ],
            numbers=range(1, 7),
        )
    )
    if result.get("transfers"):
        parts.append(f"<p class='sub'>{html.escape(result['transfers'])}</p>")
    plots = [("Distribution", _distribution(result)), ("Over time", _steadiness(result))]
    if load:
        plots.append(("Latency against load, waiting included", _load(load)))
    plots.append(("Batches", _batches(result["batches"])))
    parts.append(_side_by_side(plots))
    if cold:
        steps = [
            Bar(STEPS[name], cold["steps_ms"][name], f"{significant(cold['steps_ms'][name])} ms")
            for name in STEPS
            if name in cold["steps_ms"]
        ]
        parts += ["<h3>Cold start</h3>", bars(steps, "ms, median of fresh processes")]
    parts.append(_roofline(result["roofline"]))
    return "".join(parts)


def _distribution(result: Result) -> str:
    kinds = {"query": "a", "refine": "b"}
    series = [
        Line(name, [(value, rank) for rank, value in enumerate(values, start=1)], kinds[name], marked=False)
        for name, values in result["distribution_ms"].items()
    ]
    return lines(series, "ms", "% of queries answered")


def _steadiness(result: Result) -> str:
    kinds = {"query": "a", "refine": "b"}
    series = [
        Line(name, [(10 * (i + 1), value) for i, value in enumerate(values)], kinds[name])
        for name, values in result["steadiness_ms"].items()
    ]
    return lines(series, "% of the run", "median of a tenth, ms")


def _load(points: Sequence[Result]) -> str:
    curves = (("p50", "p50", "a"), ("p99", "p99", "c"))
    series = [
        Line(name, [(p["rate_per_s"], p["latency"][f"{key}_ms"]) for p in points], kind)
        for name, key, kind in curves
    ]
    series.append(
        Line("p50 without waiting", [(p["rate_per_s"], p["service"]["p50_ms"]) for p in points], "b")
    )
    behind = [significant(p["rate_per_s"]) for p in points if not p["kept_up"]]
    note = (
        f"<p class='sub'>Fell behind at {', '.join(behind)} requests/s: the queue grew all along.</p>"
        if behind
        else ""
    )
    return lines(series, "requests a second (Poisson arrivals)", "ms", logarithmic=True) + note


def _batches(batches: Sequence[Result]) -> str:
    return _table(
        ["queries a batch", "ms a query", "queries/s", "p99 of a batch, ms"],
        [
            [
                str(batch["size"]),
                significant(batch["per_query_ms"]),
                significant(batch["throughput_per_s"]),
                significant(batch["batch"]["p99_ms"]),
            ]
            for batch in batches
        ],
        numbers=range(4),
    )


def _roofline(roofline: Result) -> str:
    items = []
    if "score_fraction" in roofline:
        label = "scoring, of the read bandwidth"
        items.append(Bar(label, roofline["score_fraction"], f"{roofline['score_fraction']:.2f}", kind="ours"))
    if "encoder_fraction" in roofline:
        label = "image encoder, of the matrix rate"
        items.append(
            Bar(label, roofline["encoder_fraction"], f"{roofline['encoder_fraction']:.2f}", kind="ours")
        )
    if not items:
        return ""
    limits = []
    if "read_bytes_per_s" in roofline:
        limits.append(f"reads {roofline['read_bytes_per_s'] / 1e9:.1f} GB/s")
    if "matrix_macs_per_s" in roofline:
        limits.append(f"multiplies {roofline['matrix_macs_per_s'] / 1e9:.0f} GMAC/s in float32")
    text = f"Measured in this run: the machine {' and '.join(limits)} with {roofline['threads']} threads."
    if roofline.get("rows_fit_in_cache"):
        text += " Rows this few stay in the cache, which is faster than memory."
    items.append(Bar("what the machine can do", 1.0, "1", kind="reference"))
    parts = [
        "<h3>Against what the machine can do</h3>",
        bars(items, "fraction"),
        f"<p class='sub'>{text}</p>",
    ]
    if roofline.get("predictions"):
        parts += ["<h3>Predicted for other devices, not measured</h3>", _predictions(roofline["predictions"])]
    return "".join(parts)


def _predictions(entries: Sequence[Result]) -> str:
    return _table(
        ["device", "scoring these rows, ms", "image encoder float32, ms", "float16, ms"],
        [
            [
                entry["device"],
                significant(entry["scan_ms"]),
                f"over {significant(entry['encoder_float32_floor_ms'])}",
                f"over {significant(entry['encoder_float16_floor_ms'])}",
            ]
            for entry in entries
        ],
        numbers=range(1, 4),
    )


def _compare(result: Result) -> str:
    parts = [f"<p class='sub'>Verified equal first: {html.escape(result['verified'])}.</p>"]
    for part, ways in result["comparisons"].items():
        items = [
            Bar(
                name,
                found["times_ours"]["median"],
                f"{significant(found['times_ours']['median'])}x, {significant(found['p50_ms'])} ms",
                found["times_ours"]["p10"],
                found["times_ours"]["p90"],
                "ours" if name == result["ours"] else "other",
            )
            for name, found in ways.items()
        ]
        parts += [
            f"<h3>{html.escape(part[0].upper() + part[1:])}</h3>",
            bars(items, "times ours, median and middle 80% of rounds"),
        ]
    return "".join(parts)


def _scoring(result: Result) -> str:
    entries = sorted(result["results"], key=lambda entry: float(entry["median_ms"]))
    items = [
        Bar(
            f"{entry['name']} {entry['dtype']}",
            entry["median_ms"],
            f"{significant(entry['median_ms'])} ms",
            entry.get("p10_ms"),
            entry.get("p90_ms"),
            scoring_kind(entry["name"]),
        )
        for entry in entries
    ]
    rows = [
        [
            entry["name"],
            str(entry["dtype"]),
            significant(entry["median_ms"]),
            "" if entry.get("of_roofline") is None else f"{entry['of_roofline']:.2f}",
            _verified(entry),
        ]
        for entry in entries
    ]
    return bars(items, f"ms, median, k = {result['k']}; logarithmic", logarithmic=True) + _table(
        ["what", "rows", "ms", "times its roofline", "verified"], rows, numbers=range(2, 4)
    )


def _verified(entry: Result) -> str:
    if scoring_kind(entry["name"]) == "reference":
        return ""  # a yardstick answers nothing that could be wrong
    return "yes" if entry.get("verified") else "no"


def _table7(result: Result) -> str:
    encoders, paper, settings = result["encoders"], result["paper"], result["settings"]
    base = paper["encoders"]["seconds"]
    rows = [
        [
            "encoders alone",
            f"{encoders['giga_macs']:.3f}",
            f"{encoders['mega_parameters']:.2f}",
            significant(encoders["seconds"]),
            "",
            f"{base:.2f}",
            "",
        ]
    ]
    items = []
    for name, system in result["systems"].items():
        for way, label in (("authors", "the authors' way"), ("ours", system["scorer"])):
            added = system[way]["seconds"]
            known = paper[name]["seconds"]
            rows.append(
                [
                    f"{name}, {label}",
                    f"+{system['giga_macs']:.3f}",
                    f"+{system['mega_parameters']:.2f}",
                    significant(encoders["seconds"] + added),
                    f"+{significant(added)}",
                    f"{known:.2f}" if way == "authors" and known is not None else "",
                    f"+{known - base:.2f}" if way == "authors" and known is not None else "",
                ]
            )
            kind = "ours" if way == "ours" else "other"
            items.append(Bar(f"{name}, {label}", added, f"{significant(added)} s", kind=kind))
    note = (
        f"{settings['data']}: {sum(settings['galleries'].values()):,} images, "
        f"{sum(settings['queries'].values()):,} queries; {settings['device']}, "
        f"{settings['threads']} threads. The last two columns are the paper's, on an NVIDIA T4."
    )
    header = ["", "GMAC", "M parameters", "total s", "scoring adds, s", "paper: total s", "paper: adds, s"]
    ratios = [
        (f"{name}: authors' way over ours", f"{significant(system['authors_over_ours'])}x")
        for name, system in result["systems"].items()
    ]
    return (
        f"<p class='sub'>{html.escape(note)}</p>{_tiles(ratios)}{_table(header, rows, numbers=range(1, 7))}"
        f"<h3>Time that scoring adds</h3>{bars(items, 's; logarithmic', logarithmic=True)}"
    )


def _accuracy(result: Result) -> str:
    protocol = result["protocol"]
    note = f"Split {protocol['split']}, rows {result['settings']['row_type']}. {protocol['source']}."
    parts = [f"<p class='sub'>{html.escape(note)}</p>"]
    if "measure" not in result:
        return "".join(parts)
    recalls = [name for name in result["mean"] if name.startswith("R")]
    items = [Bar(name, result["mean"][name], f"{result['mean'][name]:.2f}", kind="ours") for name in recalls]
    measure = result["measure"]
    parts.append(_tiles([(f"mean of {' and '.join(measure['metrics'])}", f"{measure['value']:.2f}")]))
    parts.append(bars([*items, Bar("all queries answered first", 100.0, "100", kind="reference")], "%"))
    names = list(result["mean"])
    rows = [
        [part["name"], f"{part['rows']:,}", f"{part['queries']:,}"]
        + [f"{part['metrics'][name]:.2f}" if name in part["metrics"] else "" for name in names]
        for part in result["parts"]
    ]
    header = ["", "gallery", "queries", *(name.replace("_", " ") for name in names)]
    parts.append(_table(header, rows, numbers=range(1, len(header))))
    if "drift" in result:
        drift = result["drift"]
        against, worst = drift["against"], drift["embedding_cosine"]["worst"]
        parts.append(f"<h3>Drift against {html.escape(str(against['precision']))}</h3>")
        tiles = [
            ("first ten agree", f"{100 * drift['top10_agreement']['mean']:.2f}%"),
            ("same first", f"{100 * drift['same_top1']:.2f}%"),
            ("worst cosine of an embedding", f"{worst:.6f}"),
        ]
        tiles += [
            (f"{part}, {name}", change(points))
            for part, metrics in drift["metrics"].items()
            for name, points in metrics.items()
            if name.startswith("R")
        ]
        parts.append(_tiles(tiles))
    return "".join(parts)


_CONTENT: dict[str, Callable[[Result], str]] = {
    "latency": _latency,
    "compare": _compare,
    "scoring": _scoring,
    "table7": _table7,
    "accuracy": _accuracy,
}


def _picture(bundle: Result) -> str:
    image = bundle["image"]
    if len(image) == 1:
        return f"{image[0]} features"
    return f"{image[0]} px, scaled JPEGs" if bundle.get("scaled_jpeg") else f"{image[0]} px"


def _side_by_side(blocks: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<div><h3>{html.escape(name)}</h3>{content}</div>" for name, content in blocks)
    return f"<div class='pairs'>{cells}</div>"


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    cells = "".join(
        f"<div class='tile'><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in tiles
    )
    return f"<div class='tiles'>{cells}</div>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if column in numbers else ''}>{html.escape(cell)}</{tag}>"
            for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{cells(header, 'th')}</tr>{body}</table></div>"
