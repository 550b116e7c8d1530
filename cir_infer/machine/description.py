"""What a machine is: processor, memory, power mode, GPU and versions, as plain values.

Nothing that names the machine or its owner is told, and whatever a machine does not tell is None or left out.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cir_infer
from cir_infer.machine.nvml import Nvml
from cir_infer.processes.cpus import available_cpus

__all__ = ["describe_machine", "memory_bytes", "text_of"]

_LIBRARIES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "pillow",
    "tokenizers",
    "torch",
    "tensorrt",
    "pycuda",
    "openvino",
    "faiss-cpu",
    "usearch",
)
_ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "i8mm", "sve")


def describe_machine(root: Path = Path("/"), gpus: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The machine, as plain values; what it does not tell is None or left out.

    Args:
        root: where /proc, /sys and /etc are looked up.
        gpus: what `Nvml.devices` told; None asks it here.
    """
    gpus = Nvml.devices() if gpus is None else gpus
    jetson = _jetson(root)
    cpu = _cpu(root)
    return {
        "name": jetson.get("model") or (gpus[0]["name"] if gpus else None) or cpu["model"],
        "cpu": cpu,
        "memory_bytes": memory_bytes(root, "MemTotal"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _versions(),
        "gpus": list(gpus),
        **({"jetson": jetson} if jetson else {}),
    }


def _cpu(root: Path) -> dict[str, Any]:
    info = text_of(root / "proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    scaling = root / "sys/devices/system/cpu/cpu0/cpufreq"
    megahertz = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", info, re.MULTILINE)]
    return {
        "model": model[1].strip() if model else platform.machine(),
        "cores": available_cpus(),
        "instruction_sets": [isa for isa in _ISA if isa in present],
        "mhz": round(max(megahertz)) if megahertz else _kilohertz(scaling / "scaling_cur_freq"),
        "max_mhz": _kilohertz(scaling / "cpuinfo_max_freq"),
        "governor": text_of(scaling / "scaling_governor").strip() or None,
        "virtual": "hypervisor" in present,
    }


def _kilohertz(path: Path) -> int | None:
    text = text_of(path).strip()
    return int(text) // 1000 if text.isdigit() else None


def memory_bytes(root: Path, name: str) -> int | None:
    """An entry of /proc/meminfo, None where it is not told."""
    match = re.search(rf"^{name}:\s+(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _jetson(root: Path) -> dict[str, Any]:
    """Model, L4T release and power mode of a Jetson; empty elsewhere."""
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", text_of(root / "etc/nv_tegra_release"))
    # A container has the device tree and not always the release.
    chip = text_of(root / "proc/device-tree/compatible")
    if release is None and "nvidia,tegra" not in chip:
        return {}
    mode = re.search(r"pmode:\s*(\d+)", text_of(root / "var/lib/nvpmodel/status"))
    names = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", text_of(root / "etc/nvpmodel.conf"))
    )
    number = str(int(mode[1])) if mode else None
    return {
        "model": text_of(root / "proc/device-tree/model").strip("\0\n ") or "Jetson",
        "l4t": f"{release[1]}.{release[2]}" if release else None,
        "power_mode": names.get(number, number) if number else None,
    }


def _versions() -> dict[str, str]:
    found = {"cir-infer": cir_infer.__version__}
    for name in _LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except Exception:  # not installed, or metadata that are no metadata
            continue
        if isinstance(version, str):
            found[name] = version
    return found


def text_of(path: Path) -> str:
    """A small file of the system; "" where there is none that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return ""
