"""The tables of docs/performance.md, written from the committed results and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cir_bench.cuda_scoring.reach import reached
from cir_bench.report.text import machine_line, scored_rows, scoring_kind, significant
from cir_infer.errors import UsageError
from cir_infer.foreign import text_of
from cir_infer.inputs.opening import why

__all__ = [
    "BEGIN",
    "END",
    "GPU_BEGIN",
    "GPU_END",
    "gpu_section",
    "performance_section",
    "read_page",
    "replace_section",
]

BEGIN = "<!-- performance:begin -->"
END = "<!-- performance:end -->"
GPU_BEGIN = "<!-- gpu:begin -->"
GPU_END = "<!-- gpu:end -->"

Result = Mapping[str, Any]


def performance_section(results: Mapping[str, Result]) -> str:
    """Tables of all results, as Markdown.

    Args:
        results: by the name of their file below benchmarks/results/.
    """
    if not results:
        return "No results are committed yet.\n"
    blocks = [
        _block(
            "One query end to end (`cir-bench latency`)", _LATENCY, _latency_rows(_of(results, "latency"))
        ),
        _block(
            "Times ours, median and middle 80% of rounds, verified equal first (`cir-bench compare`)",
            _COMPARE,
            _compare_rows(_of(results, "compare")),
        ),
        _block("Exact scoring (`cir-bench scoring`)", _SCORING, _scoring_rows(_of(results, "scoring"))),
        _block(
            "What scoring adds to encoding all of FashionIQ's validation split (`cir-bench table7`)",
            _TABLE7,
            _table7_rows(_of(results, "table7")),
        ),
        _block("Recall (`cir-bench accuracy`)", _ACCURACY, _accuracy_rows(_of(results, "accuracy"))),
    ]
    machines = sorted({machine_line(result) for result in results.values()})
    doubted = sum(bool(result.get("doubts")) for result in results.values())
    text = "\n".join(block for block in blocks if block)
    text += f"\nMeasured on: {'; '.join(machines)}. Files, with their commits, in `benchmarks/results/`"
    if doubted:
        text += f"; {doubted} of {len(results)} carry warnings of their own (few samples, neighbours, scaled)"
    text += ".\n"
    return text


def gpu_section(checks: Mapping[str, Result]) -> str:
    """What the CUDA scorer is to reach and what GPU checks measured, as Markdown.

    Args:
        checks: from `results.gpu_checks`.
    """
    named = [(name, check) for name, check in sorted(checks.items()) if "steps" in check]
    heads = [f"{_machine(check)}, {str(check['created'])[:10]}" for _, check in named] or ["no GPU yet"]
    lines = [f"| CUDA scorer | wanted | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for what, step in (
        ("conformance suite", "conformance"),
        ("compute-sanitizer memcheck", "memcheck"),
        ("compute-sanitizer racecheck", "racecheck"),
    ):
        cells = [_passed(check["steps"].get(step, {})) for _, check in named] or ["open"]
        lines.append(f"| {what} | passes | {' | '.join(cells)} |")
    columns = [reached(check.get("benchmark", {})) for _, check in named] or [reached({})]
    for row in zip(*columns, strict=True):
        cells = [
            "open"
            if figure is None
            else f"{significant(figure)}{target.unit}{'' if target.met(figure) else ' (missed)'}"
            for target, figure in row
        ]
        lines.append(f"| {row[0][0].what} | {row[0][0].wanted} | {' | '.join(cells)} |")
    files = ", ".join(f"`{name}` ({check['commit']})" for name, check in named)
    filled_by = "`make gpu-check` on any CUDA machine fills the last column."
    lines += ["", f"From {files}." if named else filled_by]
    return "\n".join(lines) + "\n"


_TIMED_OUT = 124  # as of `timeout`, and so of `tools/cuda/gpu_check.py`


def _passed(step: Mapping[str, Any]) -> str:
    if step.get("passed") is None:
        return "not run"
    if step.get("exit_code") == _TIMED_OUT:
        return f"did not end in {step['seconds']:.0f} s"
    return "passes" if step["passed"] else "**fails**"


def replace_section(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """A page with one section replaced.

    Raises:
        UsageError: one of its markers is missing.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UsageError(f"the page lacks the lines {begin} and {end}; put them where the section belongs")
    head, rest = text.split(begin)
    _, tail = rest.split(end)
    return f"{head}{begin}\n{section}{end}{tail}"


def read_page(path: Path) -> str:
    """Its text.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return text_of(path, "utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {why(error)}") from error


_LATENCY = (
    "machine",
    "model",
    "pictures",
    "rows",
    "query p50",
    "p99",
    "over the encoder",
    "refined hit",
    "cold start",
)
_COMPARE = ("machine", "model", "rows", "alternative", "query", "image encoder", "scoring and top-k")
_SCORING = ("machine", "rows", "queries", "ours", "ms", "limit", "fastest other", "slowest other")
_TABLE7 = ("machine", "system", "authors' way", "ours", "times ours", "paper, T4")
_ACCURACY = ("model", "protocol", "gallery", "queries", "recall")


def _of(results: Mapping[str, Result], kind: str) -> list[Result]:
    return [results[name] for name in sorted(results) if results[name]["kind"] == kind]


def _block(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"**{title}**", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _machine(result: Result) -> str:
    machine = result["machine"]
    cores = machine.get("cpu", {}).get("cores")
    on_gpu = bool(machine.get("gpus"))
    return str(machine["name"]) if on_gpu or not cores else f"{machine['name']}, {cores} cores"


def _model(bundle: Result) -> str:
    image = bundle["image"]
    size = f"{image[0]} features" if len(image) == 1 else f"{image[0]} px"
    if bundle.get("scaled_jpeg"):
        size += ", scaled JPEGs"
    macs = bundle.get("macs", {}).get("image")
    work = f", {significant(macs / 1e9)} GMAC" if macs else ""
    return f"{bundle['system']} {bundle['precision']}, {size}{work}"


def _latency_rows(results: Sequence[Result]) -> list[list[str]]:
    rows = []
    for result in results:
        stages, cold = result["stages"], result["cold_start"]
        share = result["shares_of_encoder"].get("query")
        refine = stages.get("refine")
        rows.append(
            [
                _machine(result),
                _model(result["bundle"]),
                str(result["settings"]["workload"]).partition(";")[0],
                f"{result['gallery']['rows']:,} {result['gallery']['row_type']}",
                f"{significant(stages['query']['p50_ms'])} ms",
                f"{significant(stages['query']['p99_ms'])} ms",
                "" if share is None else f"{share:.2f}x",
                "" if refine is None else f"{significant(refine['p50_ms'])} ms",
                "" if not cold else f"{significant(cold['to_first_answer_ms'])} ms",
            ]
        )
    return rows


def _compare_rows(results: Sequence[Result]) -> list[list[str]]:
    """One row an alternative: how many times ours it takes, with the middle 80% of the rounds."""
    rows = []
    for result in results:
        for name in next(iter(result["comparisons"].values())):
            if name == result["ours"]:
                continue
            times = [ways.get(name, {}).get("times_ours") for ways in result["comparisons"].values()]
            rows.append(
                [
                    _machine(result),
                    _model(result["bundle"]),
                    f"{result['settings']['rows']:,}",
                    name,
                    *("" if t is None else _times(t) for t in times),
                ]
            )
    return rows


def _times(found: Mapping[str, float]) -> str:
    return f"{significant(found['median'])}x ({significant(found['p10'])} to {significant(found['p90'])})"


def _scoring_rows(results: Sequence[Result]) -> list[list[str]]:
    """One row for each of our entries, beside the fastest and the slowest of what else one could do."""
    rows = []
    for result in results:
        others = [
            entry
            for entry in result["results"]
            if scoring_kind(entry["name"]) == "other" and entry["verified"]
        ]
        if not others and not any(entry["name"].startswith("cir/cuda") for entry in result["results"]):
            continue  # instruction sets side by side: kernels/score/README.md has those
        others.sort(key=lambda entry: float(entry["median_ms"]))
        for entry in result["results"]:
            if not entry["name"].startswith("cir/"):
                continue
            rows.append(
                [
                    _machine(result),
                    scored_rows(result),
                    f"{result['queries']:,}",
                    f"{entry['name']}, {entry['dtype']}",
                    significant(entry["median_ms"]),
                    _limit(entry),
                    *(_relative(other, entry) for other in (*others[:1], *others[-1:])),
                    *([""] * (2 - min(2, len(others[:1]) + len(others[-1:])))),
                ]
            )
    return rows


def _limit(entry: Result) -> str:
    """How near the physics: reading the rows once, or, for a batch, the machine's matrix product."""
    if "of_sgemm" in entry:
        return f"{entry['of_sgemm']:.2f} of SGEMM"
    return "" if entry.get("of_roofline") is None else f"{entry['of_roofline']:.2f}x reading"


def _relative(other: Result, ours: Result) -> str:
    beside = other.get("over_ours", {}).get(f"{ours['name']} {ours['dtype']}")
    ratio = beside["median"] if beside else other["median_ms"] / ours["median_ms"]
    return f"{other['name']} {significant(ratio)}x"


def _table7_rows(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            _machine(result),
            name,
            f"+{significant(system['authors']['seconds'])} s",
            f"+{significant(system['ours']['seconds'])} s",
            f"{significant(system['authors_over_ours'])}x",
            _printed(result["paper"][name]["seconds"], result["paper"]["encoders"]["seconds"]),
        ]
        for result in results
        for name, system in result["systems"].items()
    ]


def _printed(seconds: float | None, encoders: float) -> str:
    """What the paper says that scoring adds; it gives no time for VAL."""
    return "" if seconds is None else f"+{seconds - encoders:.2f} s"


def _accuracy_rows(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            f"{result['bundle']['system']} {result['bundle']['precision']}, "
            f"rows {result['settings']['row_type']}",
            f"{result['protocol']['name']}, {result['protocol']['split']}",
            f"{sum(part['rows'] for part in result['parts']):,}",
            f"{sum(part['queries'] for part in result['parts']):,}",
            ", ".join(f"{n} {v:.2f}" for n, v in result["mean"].items() if n.startswith("R")),
        ]
        for result in results
        if "mean" in result
    ]
