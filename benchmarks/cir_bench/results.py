"""Result files: one JSON object a measurement, with the machine, the commit and the moment.

    {"kind": "latency", "machine": {...}, "commit": "...", "created": "...", ...}

What `cir-bench scoring --json` writes is read too; it has no `kind`. What `make gpu-check` writes counts as
one scoring result for each case of its benchmark.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cir_infer.errors import UsageError, shown
from cir_infer.foreign import read_json, text_of
from cir_infer.inputs.opening import why
from cir_infer.processes.outputs import check_apart, check_replaceable, replacing

__all__ = [
    "KINDS",
    "ensure_writable",
    "gpu_checks",
    "read_as",
    "read_result",
    "read_results",
    "to_json",
    "write_text",
]

KINDS = ("latency", "compare", "table7", "accuracy", "scoring")
GPU_CHECK = "gpu-check"
_SCORING = {"machine", "commit", "rows", "dim", "queries", "k", "results"}
_HOLDS: dict[str, set[str]] = {
    "latency": {"bundle", "gallery", "settings", "stages", "steadiness_ms", "distribution_ms"}
    | {"shares_of_encoder", "batches", "load", "cold_start", "memory", "energy_per_query_joules", "roofline"},
    "compare": {"bundle", "settings", "ours", "comparisons"},
    "table7": {"encoders", "paper", "settings", "systems"},
    "accuracy": {"bundle", "mean", "parts", "protocol", "settings"},
    "scoring": _SCORING,
}
"""What a report reads of each kind."""


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        UsageError: it is missing, not JSON, or not a result of `cir-bench`.
    """
    try:
        content = read_json(text_of(path))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as JSON ({why(error)}); expected what cir-bench wrote"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object; expected what cir-bench --json printed")
    if "kind" not in content and set(content) >= _SCORING:
        content["kind"] = "scoring"
    if content.get("kind") not in (*KINDS, GPU_CHECK):
        raise UsageError(
            f"{path} is no result of cir-bench (kind {shown(content.get('kind'))}); "
            f"expected one of {', '.join(KINDS)}"
        )
    missing = {"machine", "commit", *_HOLDS.get(content["kind"], ())} - set(content)
    if missing:
        raise UsageError(f"{path} lacks {', '.join(sorted(missing))}; measure again with this release")
    if not isinstance(content["machine"], Mapping):
        content["machine"] = {"name": str(content["machine"])}
    return content


def read_results(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Results by the names of their files; the cases of a GPU check by name and case.

    Raises:
        UsageError: see `read_result`; and two files of one name.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if path.name in found:
            raise UsageError(f"two results have the file name {path.name}; rename one of them")
        result = read_result(path)
        if result["kind"] != GPU_CHECK:
            found[path.name] = result
            continue
        with read_as(path.name, GPU_CHECK):
            _add_cases(found, path.name, result)
    return found


def _add_cases(found: dict[str, dict[str, Any]], file: str, result: Mapping[str, Any]) -> None:
    head = {name: result[name] for name in ("machine", "commit", "created") if name in result}
    for case in result.get("benchmark", {}).get("cases", []):
        timed = [entry for entry in case["results"] if "median_ms" in entry]
        name = f"{file}, {case['rows']} x {case['queries']}"
        if name in found:  # the same size again, beside other alternatives
            have = {(entry["name"], entry["dtype"]) for entry in found[name]["results"]}
            found[name]["results"] += [e for e in timed if (e["name"], e["dtype"]) not in have]
            continue
        found[name] = {"kind": "scoring", **head, **case, "results": timed}


@contextmanager
def read_as(name: str, kind: str) -> Iterator[None]:
    """Words what goes wrong where a result is read: deep inside a file anything may be missing or odd.

    Args:
        name: of its file.
        kind: of the result.

    Raises:
        UsageError: in place of what the block raised.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(
            f"{name} does not hold what a result of kind {shown(kind)} does ({type(error).__name__}: "
            f"{shown(error)}); measure again with this release"
        ) from error


def gpu_checks(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """What `make gpu-check` wrote, among results, by the names of their files.

    Raises:
        UsageError: see `read_result`.
    """
    found = {path.name: read_result(path) for path in paths}
    return {name: result for name, result in found.items() if result["kind"] == GPU_CHECK}


def to_json(result: Mapping[str, Any]) -> str:
    """The text of a result file."""
    return json.dumps(result, ensure_ascii=False, allow_nan=False, indent=1, default=_plain) + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all.

    Raises:
        UsageError: its folder does not exist or cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error


def ensure_writable(path: Path | None, read: Sequence[Path | str | None] = ()) -> None:
    """Refuse an output file whose folder does not exist before minutes are spent on measuring.

    Args:
        path: of the output.
        read: the files that are measured or shown.

    Raises:
        UsageError: there is no such folder, something else than a file has the name, or it is one of `read`.
    """
    if path is None:
        return
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no folder {folder}; create it first")
    try:
        check_replaceable(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    check_apart(path, read)
