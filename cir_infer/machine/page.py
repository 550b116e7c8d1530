"""What was found, as text for a terminal that is Markdown in an issue, too."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cir_infer.console.printing import printable
from cir_infer.runtime.device_names import AUTO

__all__ = ["page"]

_WIDTH, _NARROWEST = 100, 48
_NAME = 16


def page(found: Mapping[str, Any], width: int = _WIDTH) -> str:
    """The examination as lines of at most 100 columns, in one block that an issue shows as it stands.

    Args:
        found: see `examine`.
        width: columns that there are; below 48, lines are longer.
    """
    width = min(max(width, _NARROWEST), _WIDTH)
    lines = ["```text", f"cir-infer {found['cir_infer']}, {found['created']}"]
    for title, entries in _sections(found):
        lines += ["", title]
        for name, text in entries:
            lines += _wrapped(name, _private(text), width)
    lines.append("```")
    return "\n".join(lines)


def _sections(found: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[tuple[str, str]]]]:
    yield "MACHINE", list(_machine(found))
    yield "LIBRARIES", [*_libraries(found), *_kernels(found["kernels"])]
    yield "NVIDIA GPU", list(_gpu(found))
    for what, title in (("encoders", "ENCODERS, by device"), ("scoring", "SCORING")):
        entries = [
            (run["where"], f"{'yes' if run['runs'] else 'no '}  {run['why']}")
            for run in found["runs"]
            if run["what"] == what
        ]
        if what == "encoders":
            entries.append(("auto", f"takes {_auto(found['runs'])}"))
        yield title, entries
    if found["advice"]:
        yield "WHAT TO DO", [("-", text) for text in found["advice"]]


def _auto(runs: Sequence[Mapping[str, Any]]) -> str:
    works = [run["where"] for run in runs if run["what"] == "encoders" and run["runs"]]
    return next((device for device in AUTO if device in works), "nothing: none of them runs")


def _machine(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine, python, memory = found["machine"], found["python"], found["memory"]
    cpu, jetson = machine["cpu"], machine.get("jetson")
    yield "system", machine["system"]
    if jetson:
        yield (
            "Jetson",
            f"{jetson['model']}, L4T {jetson['l4t'] or 'unknown'}, "
            f"power mode {jetson['power_mode'] or 'unknown'}",
        )
    sets = ", ".join(cpu["instruction_sets"]) or "none of those that matter here is known to be there"
    yield (
        "processor",
        f"{cpu['model']}, {cpu['cores']} for this process{', virtual' if cpu['virtual'] else ''}",
    )
    yield "instructions", sets
    clock = ", ".join(
        f"{cpu[key]} MHz {word}" for key, word in (("mhz", "now"), ("max_mhz", "at most")) if cpu[key]
    )
    if clock or cpu["governor"]:
        yield "clock", ", ".join(part for part in (clock, cpu["governor"]) if part)
    sizes = machine["memory_bytes"], memory["available_bytes"]
    yield "memory", f"{_size(sizes[0])}, {_size(sizes[1])} free" if any(sizes) else "unknown"
    yield "disk for plans", f"{_size(memory['disk_bytes'])} free"
    kind = "the system's" if not python["environment"] else "an environment"
    sees = (
        ""
        if not python["environment"]
        else ", sees the system's packages"
        if python["sees_system_packages"]
        else ", alone"
    )
    yield "python", f"{python['version']}, {python['bits']} bits, {kind}{sees}"


def _libraries(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    asked = found["libraries"]
    for name, about in asked.items():
        said = (
            "not installed" if about.get("absent") else about.get("failed") or about.get("version", "unknown")
        )
        providers = about.get("providers")
        yield name, f"{said}; {', '.join(providers)}" if providers else said
    others = {
        name: version
        for name, version in found["machine"]["libraries"].items()
        if name not in asked and name != "cir-infer"
    }
    yield "others", ", ".join(f"{name} {version}" for name, version in others.items()) or "none"


def _kernels(kernels: Mapping[str, int | None]) -> Iterator[tuple[str, str]]:
    yield (
        "CUDA kernels",
        ", ".join(
            f"{name} {'is missing' if size is None else _size(size)}" for name, size in kernels.items()
        ),
    )


def _gpu(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    driver = found["driver"]
    if driver["missing"]:
        yield "none", driver["missing"]
    if driver["cuda"]:
        versions = sorted({gpu["driver"] for gpu in found["machine"]["gpus"] if gpu.get("driver")})
        yield "driver", f"CUDA {driver['cuda']}{', ' + ', '.join(versions) if versions else ''}"
    for number, gpu in enumerate(driver["gpus"]):
        shared = ", shares the machine's memory" if gpu["integrated"] else ""
        yield (
            str(number),
            f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} "
            f"multiprocessors, {_size(gpu['memory_bytes'])}{shared}{_bandwidth(gpu)}",
        )


def _bandwidth(gpu: Mapping[str, Any]) -> str:
    clock, bits = gpu["memory_clock_khz"], gpu["bus_bits"]
    return f", {2e3 * clock * bits / 8 / 1e9:.0f} GB/s by its clock" if clock and bits else ""


def _size(nbytes: int | None) -> str:
    if nbytes is None:
        return "unknown"
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _private(text: str) -> str:
    """Without the folder that has its owner's name, and nothing that a terminal would obey."""
    home = os.path.expanduser("~")  # noqa: PTH111
    return printable(text.replace(home, "~") if len(home) > 1 else text).replace("```", "'''")


def _wrapped(name: str, text: str, width: int) -> list[str]:
    if name == "-":
        return textwrap.wrap(text, width - 4, initial_indent="  - ", subsequent_indent="    ")
    lines = textwrap.wrap(text, width - _NAME - 4, break_on_hyphens=False) or [""]
    return [f"  {name if number == 0 else '':<{_NAME}}  {line}" for number, line in enumerate(lines)]
