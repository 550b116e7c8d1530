"""What the compiler made of the kernels' loops: a table of their machine code, and what is worse than it.

`tools/cuda/build_cuda.py --check` and `--update` call this where cuobjdump is found: in a CUDA toolkit, in
NVIDIA's wheel `nvidia-cuda-cuobjdump` (on the PATH, `nvidia-cuda-nvdisasm` beside it), or as $CUOBJDUMP.

A loop counts if it is an innermost one that loads 16 bytes a lane from memory, multiplies matrices, or loads
nothing and multiplies float32 values: where the time goes. Instructions of a pass, by one warp:

    instructions   all of them: each takes an issue slot
    conversions    half to float (HADD2.F32), float to half (F2F, F2FP), integer to float (I2F, I2FP), and
                   permuted bytes (PRMT), which is how int8 becomes one
    loads          of 16 bytes a lane from global memory
    products       of matrices (HMMA)
    float32        additions and products of float32 values (FFMA, FADD, FMUL): Turing does them at half rate
    slots_per_kb   instructions for each 1,024 bytes that the warp's loads bring
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Loop", "complaints", "find_cuobjdump", "loops_of", "summary", "table_of"]

Loop = dict[str, float]
Code = list[tuple[int, str, str]]
Table = dict[str, dict[str, Any]]

TOLERANCE = 1.02
"""Another release of the same compiler may move an instruction."""

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\b(.*?);")
_CONVERSIONS = ("HADD2.F32", "F2F", "I2F", "PRMT")
_BYTES = 32 * 16


def find_cuobjdump(nvcc: str | None = None) -> str | None:
    """The disassembler, or None where there is none."""
    beside = Path(nvcc).resolve().parent / "cuobjdump" if nvcc else None
    for found in (os.environ.get("CUOBJDUMP"), shutil.which("cuobjdump"), str(beside) if beside else None):
        if found and Path(found).is_file():
            return found
    return None


def disassembled(cuobjdump: str, fatbin: Path, architecture: int) -> Iterable[tuple[str, Code]]:
    """Every kernel of a fatbin for an architecture: address, opcode and operands of each instruction."""
    command = [cuobjdump, "-sass", "-arch", f"sm_{architecture}", str(fatbin)]
    # nvdisasm is looked for on the PATH only.
    paths = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": paths}
    ) as process:
        assert process.stdout is not None
        name, code = "", list[tuple[int, str, str]]()
        for line in process.stdout:
            if "Function :" in line:
                if code:
                    yield name, code
                name, code = line.split(":")[1].strip(), []
            elif match := _INSTRUCTION.match(line):
                code.append((int(match[1], 16), match[2], match[3]))
        if code:
            yield name, code
    if process.returncode != 0:
        raise SystemExit(f"error: {cuobjdump} failed with code {process.returncode} on {fatbin}")


def loops_of(code: Code) -> list[Loop]:
    """The innermost loops in which time goes, the one with the most loads first."""
    jumps: set[tuple[int, int]] = set()
    for address, opcode, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        # Code that lies out of the way jumps back, too, but never across a whole kernel's end.
        if opcode == "BRA" and target and int(target[1], 16) < address:
            jumps.add((int(target[1], 16), address))
    inner = [
        jump for jump in jumps if not any(o != jump and jump[0] <= o[0] and o[1] <= jump[1] for o in jumps)
    ]
    found = [_loop([opcode for address, opcode, _ in code if low <= address <= high]) for low, high in inner]
    found = [loop for loop in found if loop["loads"] or loop["products"]] or [
        loop for loop in found if loop["float32"]
    ]
    # A loop that only brings operands in has no products and no arithmetic to speak of.
    return sorted(found, key=lambda loop: (-loop["products"], -loop["loads"], -loop["instructions"]))


def _loop(opcodes: list[str]) -> Loop:
    loads = sum(opcode.startswith("LDG") and ".128" in opcode for opcode in opcodes)
    loop: Loop = {
        "instructions": len(opcodes),
        "conversions": sum(opcode.startswith(_CONVERSIONS) for opcode in opcodes),
        "loads": loads,
        "products": sum(opcode.startswith("HMMA") for opcode in opcodes),
        "float32": sum(opcode.startswith(("FFMA", "FADD", "FMUL")) for opcode in opcodes),
    }
    if loads:
        loop["slots_per_kb"] = round(len(opcodes) * 1024 / (loads * _BYTES), 1)
    return loop


def table_of(cuobjdump: str, fatbin: Path, architectures: Iterable[int]) -> Table:
    """Kernel -> architecture -> bytes of code and loops."""
    table: Table = {}
    for architecture in architectures:
        for kernel, code in disassembled(cuobjdump, fatbin, architecture):
            of_kernel = table.setdefault(kernel, {})
            of_kernel[f"sm_{architecture}"] = {"code_bytes": 16 * len(code), "loops": loops_of(code)}
    return dict(sorted(table.items()))


def complaints(found: Table, committed: Mapping[str, Any], architectures: Iterable[int]) -> list[str]:
    """Loops that take more than the committed ones: instructions or conversions, or load less at once."""
    said = []
    for arch in (f"sm_{architecture}" for architecture in architectures):
        for kernel in sorted(set(found) | set(committed)):
            now, before = (table.get(kernel, {}).get(arch) for table in (found, committed))
            if now is None or before is None:
                worse = ["no longer compiled" if now is None else "not in the table"]
            elif len(now["loops"]) != len(before["loops"]):
                worse = [f"{len(now['loops'])} hot loops now, {len(before['loops'])} in the table"]
            else:
                pairs = enumerate(zip(now["loops"], before["loops"], strict=True))
                worse = [said for number, (loop, old) in pairs for said in _worse(number, loop, old)]
            said += [f"{kernel} for {arch}: {words}" for words in worse]
    return said


def _worse(number: int, now: Loop, before: Loop) -> list[str]:
    keys = [key for key in ("instructions", "conversions") if now[key] > TOLERANCE * before[key]]
    keys += [key for key in ("loads", "products") if now[key] != before[key]]
    return [f"loop {number} has {now[key]} {key}, {before[key]} in the table" for key in keys]


_SHOWN = ("sm_75", "sm_87", "sm_90")


def summary(table: Table, kernels: Iterable[str]) -> str:
    """The hot loop of some kernels as Markdown."""
    lines = [
        "| kernel | "
        + " | ".join(f"{arch}: instructions, of them conversions" for arch in _SHOWN)
        + " | loads of 16 bytes | products | slots a KiB |",
        "|---|" + "---|" * (len(_SHOWN) + 3),
    ]
    for kernel in kernels:
        loops = [table[kernel][arch]["loops"][0] for arch in _SHOWN if arch in table[kernel]]
        cells = [f"{loop['instructions']}, {loop['conversions']}" for loop in loops]
        for key in ("loads", "products", "slots_per_kb"):
            values = [loop.get(key, 0) for loop in loops]
            low, high = min(values), max(values)
            cells.append(f"{low:g}" if low == high else f"{low:g} to {high:g}")
        lines.append(f"| `{kernel}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
