#!/usr/bin/env python3
"""Compile the CUDA kernels for every architecture into two fatbins, and hold their resources to tables.

    tools/cuda/build_cuda.py                              write kernels.fatbin and recurrent.fatbin into
                                                          cir_infer/gpu
    tools/cuda/build_cuda.py --check                      also fail on spills or a difference from the tables
    tools/cuda/build_cuda.py --update                     write the tables anew, after a change meant to move
                                                          them, and their summaries in the README beside each
    tools/cuda/build_cuda.py --kernels recurrent          those of kernels/recurrent/cuda only
    tools/cuda/build_cuda.py --architectures 90 --no-ptx  for one GPU only

Needs nvcc 12.2 or later (JetPack 6 has that) and nothing else; no GPU, no package of this repository. Where
cuobjdump is found too, the instructions of the loops are held to tables as well (tools/cuda/machine_code.py).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.cuda import machine_code
from tools.cuda.cuda_sources import (
    ARCHITECTURES,
    SCORE,
    SETS,
    Kernels,
    record_of,
    record_path,
    sources_hash,
)

BEGIN, END = "<!-- resources:begin -->\n", "<!-- resources:end -->\n"
LOOPS_BEGIN, LOOPS_END = "<!-- instructions:begin -->\n", "<!-- instructions:end -->\n"

# The kernels distinguish Turing, data centres' GPUs, whose float64 is fast, and the rest: three front ends.
VIRTUAL = {arch: 75 if arch < 80 else 80 if arch in (80, 90, 100) else 86 for arch in ARCHITECTURES}

# Warps, blocks and KiB of shared memory of a multiprocessor (CUDA C++ Programming Guide).
LIMITS = {
    75: (32, 16, 64), 80: (64, 32, 164), 86: (48, 16, 100), 87: (48, 16, 164), 89: (48, 24, 100),
    90: (64, 32, 228), 100: (64, 32, 228), 110: (48, 24, 228), 120: (48, 24, 100),
}  # fmt: skip
THREADS = 256
REGISTERS = 65_536
# What a usual launch asks for (k = 50, J = 2 with weights, D = 512, float16 rows): occupancy is given for it.
SCAN_SHARED = 1728 + 1024 * 8 + 4 * 512 * 4
FEW_SHARED = 4 * 8 * 512 * 2
MANY_SHARED = 64 * 512 * 2
# A BiGRU of 2 x 256 units on 64 multiprocessors: 24 rows of weights, a state of 512 values, 8 units' scratch.
ENCODE_SHARED = 24 * 1024 + 2048 + 160


def find_nvcc() -> str:
    """The compiler; exits where there is none."""
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if nvcc is None:
        sys.exit("error: nvcc is not on the PATH; install the CUDA toolkit 12.2 or later, or set NVCC")
    return nvcc


def known_to(nvcc: str) -> tuple[int, ...]:
    """Those of our architectures that a compiler has: each CUDA adds some, and JetPack's is seldom new."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    found = {int(number) for number in re.findall(r"\bsm_(\d+)\b", listed.stdout)}
    known = tuple(architecture for architecture in ARCHITECTURES if architecture in found)
    if not known:
        said = " ".join((listed.stderr or listed.stdout).split())[-500:]
        sys.exit(f"error: {nvcc} lists none of {named(ARCHITECTURES)} ({said}); install CUDA 12.2 or later")
    return known


def named(architectures: Iterable[int]) -> str:
    """As nvcc calls them."""
    return ", ".join(f"sm_{architecture}" for architecture in architectures)


def compile_fatbin(
    nvcc: str, kernels: Kernels, output: Path, architectures: tuple[int, ...], ptx: bool, jobs: int
) -> str:
    """Run nvcc; returns what the assembler said of registers and memory."""
    # From CUDA 12.8 on a fatbin can be packed; every driver of CUDA 12 reads "speed", newer ones "size".
    offered = subprocess.run([nvcc, "--help"], capture_output=True, text=True).stdout
    packed = ["--compress-mode=speed"] if "--compress-mode" in offered else []
    output.parent.mkdir(parents=True, exist_ok=True)
    sources = sources_hash(kernels)
    targets = [f"-gencode=arch=compute_{VIRTUAL[a]},code=sm_{a}" for a in architectures]
    if ptx:
        targets.append("-gencode=arch=compute_80,code=compute_80")
    half = output.with_suffix(f".{os.getpid()}")
    record_path(output).unlink(missing_ok=True)
    command = [
        nvcc,
        "-std=c++17",
        "-O3",
        f"-I{kernels.folder}",
        *(f"-I{header.parent}" for header in kernels.shared),
        *targets,
        "-fatbin",
        *packed,
        "-Xptxas",
        "-v",
        "--threads",
        str(jobs),
    ]
    try:
        done = subprocess.run(
            [*command, "-o", str(half), str(kernels.folder / kernels.source)], capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(f"error: nvcc failed\n{done.stderr[-4000:]}")
        if sources_hash(kernels) != sources:
            sys.exit(f"error: {kernels.folder} was changed while nvcc read it; run this again")
        record = record_of(kernels, half.read_bytes(), architectures, ptx)
        half.replace(output)
        record_path(output).write_text(json.dumps(record) + "\n")
    finally:
        half.unlink(missing_ok=True)
    return done.stderr + done.stdout


def resources(log: str) -> dict[str, dict[str, dict[str, int]]]:
    """Kernel -> architecture -> registers, local memory, spills, blocks and warps of a multiprocessor.

    Local memory and spills are those of a kernel and of the functions that it calls, which the assembler
    names after it.
    """
    begins = re.compile(r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<arch>\d+)a?'")
    uses = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
    table: dict[str, dict[str, dict[str, int]]] = {}
    starts = list(begins.finditer(log))
    for m, following in zip(starts, [*starts, None][1:], strict=True):
        said = log[m.end() : following.start() if following else None]
        stack, stores, loads = (sum(map(int, column)) for column in zip(*uses.findall(said), strict=True))
        used = re.search(r"Used (\d+) registers", said)
        assert used is not None, f"the assembler says nothing of {m['kernel']}'s registers"
        kernel, arch, registers = m["kernel"], int(m["arch"]), int(used[1])
        shared = shared_of(kernel)
        blocks = occupancy(arch, registers, shared)
        table.setdefault(kernel, {})[f"sm_{arch}"] = {
            "registers": registers,
            "stack_bytes": stack,
            "spill_bytes": stores + loads,
            "shared_bytes": shared,
            "blocks": blocks,
            "warps": blocks * THREADS // 32,
        }
    return {kernel: dict(sorted(by_arch.items())) for kernel, by_arch in sorted(table.items())}


def shared_of(kernel: str) -> int:
    """Dynamic shared memory of the usual launch; no kernel has static shared memory."""
    if kernel.startswith("scan"):
        return SCAN_SHARED - (4 * 512 * 4 if kernel.endswith("any") else 0)
    if kernel.startswith("few"):
        return FEW_SHARED
    if kernel.startswith("many"):
        return MANY_SHARED
    if kernel.startswith("encode"):
        return ENCODE_SHARED
    return 384 if kernel.startswith("pack") else 0


def occupancy(arch: int, registers: int, shared: int) -> int:
    """Blocks of 256 threads that fit one multiprocessor."""
    warps, blocks, kib = LIMITS[arch]
    registers_of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // registers_of_warp // (THREADS // 32)
    reserved = 0 if arch == 75 else 1024  # the system's share of every block, from Ampere on
    by_shared = kib * 1024 // (shared + reserved) if shared + reserved else blocks
    return min(warps // (THREADS // 32), blocks, by_registers, by_shared)


def complaints(
    found: dict[str, dict[str, dict[str, int]]], architectures: tuple[int, ...], kernels: Kernels = SCORE
) -> list[str]:
    """What is wrong with the kernels as compiled, against the rules and the committed table."""
    said = []
    for kernel, by_arch in found.items():
        for arch, use in by_arch.items():
            if use["spill_bytes"] or use["stack_bytes"]:
                said.append(f"{kernel} for {arch} uses {use['stack_bytes']} bytes of local memory")
            if use["blocks"] < 1:
                said.append(f"{kernel} for {arch} does not fit a multiprocessor")
    table = kernels.table
    committed = json.loads(table.read_text()) if table.exists() else {"kernels": {}}
    for kernel in sorted(set(found) | set(committed["kernels"])):
        for arch in (f"sm_{a}" for a in architectures):
            now, before = (t.get(kernel, {}).get(arch) for t in (found, committed["kernels"]))
            if now != before:
                said.append(f"{kernel} for {arch}: {now} now, {before} in {table.name}")
    return said


def summary(table: dict[str, dict[str, dict[str, int]]]) -> str:
    """The table by families of kernels, as Markdown: ranges over architectures and variants."""
    lines = [
        "| kernels | registers | shared memory | blocks of 256 threads a multiprocessor | warps |",
        "|---|---|---|---|---|",
    ]
    families: dict[str, list[dict[str, int]]] = {}
    for kernel, by_arch in table.items():
        stem, *rest = kernel.split("_")
        family = (
            f"{stem}_*_any" if rest[-1:] == ["any"] else f"{stem}_*" if rest and stem != "read" else kernel
        )
        families.setdefault(family, []).extend(by_arch.values())
    for family, uses in sorted(families.items()):
        cells = []
        for key in ("registers", "shared_bytes", "blocks", "warps"):
            low, high = min(use[key] for use in uses), max(use[key] for use in uses)
            cells.append(f"{low:,}" if low == high else f"{low:,} to {high:,}")
        lines.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_summary(text: str, table: dict[str, dict[str, dict[str, int]]]) -> str:
    """The kernels' README with its summary replaced."""
    return between(text, BEGIN, summary(table), END)


def between(text: str, begin: str, new: str, end: str) -> str:
    """A text with what stands between two marks replaced."""
    head, rest = text.split(begin)
    return head + begin + new + end + rest.split(end)[1]


def hold_loops(
    nvcc: str, kernels: Kernels, fatbin: Path, architectures: tuple[int, ...], update: bool
) -> list[str]:
    """What is worse in the loops of compiled kernels than in their table, which `update` writes anew."""
    cuobjdump = machine_code.find_cuobjdump(nvcc)
    if cuobjdump is None:
        print("cuobjdump is not found: the instructions of the loops are not compared")
        return []
    found = machine_code.table_of(cuobjdump, fatbin, architectures)
    if update:
        table = {"sources": sources_hash(kernels), "kernels": found}
        # A line for each kernel and architecture.
        text = re.sub(r"\n {3,}|(?<=[\]}])\n {3}(?=[\]}])", " ", json.dumps(table, indent=1))
        kernels.instructions.write_text(text + "\n")
        shown = machine_code.summary(found, kernels.shown)
        kernels.readme.write_text(between(kernels.readme.read_text(), LOOPS_BEGIN, shown, LOOPS_END))
    if not kernels.instructions.exists():
        return [f"{kernels.instructions.name} is missing; --update writes it"]
    committed = json.loads(kernels.instructions.read_text())["kernels"]
    return machine_code.complaints(found, committed, architectures)


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernels", choices=sorted(SETS), help="one of the two only")
    parser.add_argument("--output", type=Path, help="where its fatbin goes; with --kernels")
    parser.add_argument(
        "--architectures", type=int, nargs="+", choices=ARCHITECTURES, help="default: all that nvcc knows"
    )
    parser.add_argument("--no-ptx", action="store_true", help="no PTX for architectures to come")
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument(
        "--check", action="store_true", help="fail on spills, or on a difference from the table"
    )
    parser.add_argument("--update", action="store_true", help="write the table")
    args = parser.parse_args()
    if args.output is not None and args.kernels is None:
        parser.error("--output is one fatbin; say with --kernels which")
    if args.update and args.architectures:
        parser.error("--update writes whole tables; leave out --architectures")
    nvcc = find_nvcc()
    known = known_to(nvcc)
    unknown = [a for a in args.architectures or ARCHITECTURES if a not in known]
    if unknown and (args.architectures or args.check or args.update):
        sys.exit(f"error: {nvcc} does not know {named(unknown)}; CUDA 13 does")
    if unknown:
        print(f"left out, as {nvcc} does not know them: {named(unknown)}")
    architectures = tuple(args.architectures or known)
    said = []
    for kernels in SETS.values() if args.kernels is None else (SETS[args.kernels],):
        output = kernels.fatbin if args.output is None else args.output
        found = resources(compile_fatbin(nvcc, kernels, output, architectures, not args.no_ptx, args.jobs))
        print(
            f"{output}: {output.stat().st_size} bytes, {len(found)} kernels for "
            f"{len(architectures)} architectures"
        )
        if args.update:
            table = {"sources": sources_hash(kernels), "kernels": found}
            kernels.table.write_text(json.dumps(table, indent=1) + "\n")
            kernels.readme.write_text(with_summary(kernels.readme.read_text(), found))
        if args.check or args.update:
            said += complaints(found, architectures, kernels)
            said += hold_loops(nvcc, kernels, output, architectures, args.update)
    if said:
        sys.exit("error: " + "\n       ".join(said))


if __name__ == "__main__":
    main()
