"""The same measurement at different commits: what became worse, by name."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Change", "changes_between", "figures_of", "group_key", "regressions"]

_SLOWER = 1.10
_POINTS = 0.5


@dataclass(frozen=True)
class Figure:
    """One number of a result.

    Attributes:
        name: what it is.
        value: in its unit; time in ms, recall in percent.
        low: the fast end of its spread, where there is one.
        recall: higher is better.
    """

    name: str
    value: float
    low: float | None = None
    recall: bool = False


@dataclass(frozen=True)
class Change:
    """A figure in two results of one machine and configuration.

    Attributes:
        group: what was measured, where.
        name: the figure.
        before: the older value.
        after: the newer value.
        commits: the older and the newer commit.
        worse: a regression: more than 10% slower and beyond the older run's median even in its fast
            tenth, or half a point of recall lost.
    """

    group: str
    name: str
    before: float
    after: float
    commits: tuple[str, str]
    worse: bool

    def __str__(self) -> str:
        return (
            f"{self.group}: {self.name} went from {self.before:.4g} to {self.after:.4g} "
            f"({self.commits[0]} to {self.commits[1]})"
        )


def group_key(result: dict[str, Any]) -> str:
    """What must be equal for two results to be comparable, in words."""
    kind, machine = result["kind"], result["machine"].get("name", "?")
    if kind == "scoring":
        sizes = "x".join(str(result[name]) for name in ("rows", "tokens", "dim") if name in result)
        # Rows that an index can find are drawn otherwise than those of the exact scorers.
        drawn = ", with an index" if any("linearised" in entry["name"] for entry in result["results"]) else ""
        return f"scoring {sizes}, Q={result['queries']}, k={result['k']}{drawn} on {machine}"
    if kind == "accuracy":
        bundle, protocol = result["bundle"], result["protocol"]
        batch = result["settings"].get("authors_batch")
        padded = "" if batch is None else f", padding of batches of {batch} read"
        # Accuracy does not depend on the machine; the weights are the subject.
        return (
            f"accuracy of {bundle['system']} {bundle['precision']} on {protocol['name']} "
            f"({protocol['split']}), rows {result['settings']['row_type']}{padded}"
        )
    settings = dict(result["settings"])
    settings.pop("seconds", None)
    about = json.dumps(settings, sort_keys=True)
    bundle = result.get("bundle", {})
    gallery = result.get("gallery", {})
    scaled = ", scaled JPEGs" if bundle.get("scaled_jpeg") else ""
    size = f", {gallery['rows']:,} {gallery['row_type']} rows" if gallery else ""
    # Two models of one system are told apart by what they cost.
    image = f", {'x'.join(map(str, bundle['image']))}" if bundle.get("image") else ""
    macs = bundle.get("macs", {}).get("image")
    work = f", {macs:,} multiply-adds an image" if macs else ""
    model = f"{bundle.get('system', '')} {bundle.get('precision', '')}{image}{work}{scaled}"
    return " ".join(f"{kind} {model}{size} on {machine} {about}".split())


def figures_of(result: dict[str, Any]) -> Iterator[Figure]:
    """The figures of a result that may become worse."""
    kind = result["kind"]
    if kind == "latency":
        for name, stage in result["stages"].items():
            yield Figure(f"{name} p50, ms", stage["p50_ms"], stage.get("p10_ms"))
            yield Figure(f"{name} p99, ms", stage["p99_ms"], stage["p50_ms"])
        if result.get("cold_start"):
            yield Figure("cold start, ms", result["cold_start"]["to_first_answer_ms"])
    elif kind == "compare":
        for part, ways in result["comparisons"].items():
            found = ways[result["ours"]]
            yield Figure(f"{part}, ours p50, ms", found["p50_ms"], found.get("p10_ms"))
    elif kind == "table7":
        for name, system in result["systems"].items():
            yield Figure(f"{name}, scoring all queries, ms", 1e3 * system["ours"]["seconds"])
    elif kind == "scoring":
        for entry in result["results"]:
            if entry["name"].startswith("cir/"):
                yield Figure(f"{entry['name']} {entry['dtype']}, ms", entry["median_ms"], entry.get("p10_ms"))
    elif "measure" in result:
        for name, value in result["mean"].items():
            if name.startswith("R"):
                yield Figure(name, value, recall=True)


def changes_between(older: dict[str, Any], newer: dict[str, Any]) -> list[Change]:
    """Every figure that both results have."""
    before = {figure.name: figure for figure in figures_of(older)}
    changes = []
    for figure in figures_of(newer):
        known = before.get(figure.name)
        if known is None:
            continue
        if figure.recall:
            worse = figure.value < known.value - _POINTS
        else:
            fast = figure.value if figure.low is None else figure.low
            worse = figure.value > _SLOWER * known.value and fast > known.value
        commits = (str(older["commit"]), str(newer["commit"]))
        changes.append(Change(group_key(newer), figure.name, known.value, figure.value, commits, worse))
    return changes


def regressions(results: Sequence[dict[str, Any]]) -> list[Change]:
    """What became worse between each result and the one before it, of the same machine and configuration."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in sorted(results, key=lambda result: str(result.get("created", ""))):
        groups.setdefault(group_key(result), []).append(result)
    return [
        change
        for group in groups.values()
        for older, newer in itertools.pairwise(group)
        for change in changes_between(older, newer)
        if change.worse
    ]
