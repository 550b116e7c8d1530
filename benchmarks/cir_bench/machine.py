"""What a figure was measured on: processor, memory, power mode, GPU, versions and commit.

Nothing that names the machine or its owner is recorded.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import cir_infer
from cir_bench.nvml import Nvml
from cir_infer.processes.cpus import available_cpus

__all__ = ["commit_of", "describe_machine", "peak_host_bytes", "reset_peak_host_bytes", "stamp"]

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


def describe_machine(root: Path = Path("/")) -> dict[str, Any]:
    """The machine, as plain values; what it does not tell is None or left out.

    Args:
        root: where /proc, /sys and /etc are looked up.
    """
    gpus = Nvml.devices()
    jetson = _jetson(root)
    cpu = _cpu(root)
    return {
        "name": jetson.get("model") or (gpus[0]["name"] if gpus else None) or cpu["model"],
        "cpu": cpu,
        "memory_bytes": _memory_bytes(root),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _versions(),
        "gpus": gpus,
        **({"jetson": jetson} if jetson else {}),
    }


def stamp() -> dict[str, Any]:
    """What heads every result: `machine`, `commit` and the moment (UTC)."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "machine": describe_machine(),
        "commit": commit_of(Path(cir_infer.__file__).parent),
        "created": now.isoformat(timespec="seconds"),
    }


def commit_of(folder: Path) -> str:
    """The commit of a working tree, with "-dirty" where tracked files differ; else the version.

    Results of benchmarks change no figure, so those that were just written again do not count.
    """
    git = ["git", "-C", str(folder)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            [
                *git,
                "status",
                "--porcelain",
                "--untracked-files=no",
                "--",
                ":/",
                ":(top,exclude)benchmarks/results",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return f"version {cir_infer.__version__}"
    return f"{commit}-dirty" if changes.strip() else commit


def peak_host_bytes() -> int | None:
    """The most resident memory of this process since the last reset; None where Linux does not tell."""
    match = re.search(r"^VmHWM:\s+(\d+) kB", _text(Path("/proc/self/status")), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def reset_peak_host_bytes() -> None:
    """Start a new peak from the memory in use; without effect where Linux does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _cpu(root: Path) -> dict[str, Any]:
    info = _text(root / "proc/cpuinfo")
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
        "governor": _text(scaling / "scaling_governor").strip() or None,
        "virtual": "hypervisor" in present,
    }


def _kilohertz(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) // 1000 if text.isdigit() else None


def _memory_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _jetson(root: Path) -> dict[str, Any]:
    """Model, L4T release and power mode of a Jetson; empty elsewhere."""
    release = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", _text(root / "etc/nv_tegra_release"))
    if release is None:
        return {}
    mode = re.search(r"pmode:\s*(\d+)", _text(root / "var/lib/nvpmodel/status"))
    names = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf"))
    )
    number = str(int(mode[1])) if mode else None
    return {
        "model": _text(root / "proc/device-tree/model").strip("\0\n ") or "Jetson",
        "l4t": f"{release[1]}.{release[2]}",
        "power_mode": names.get(number, number) if number else None,
    }


def _versions() -> dict[str, str]:
    found = {"cir-infer": cir_infer.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
