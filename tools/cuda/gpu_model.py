#!/usr/bin/env python3
"""What the scorer's kernels should take on GPUs that were not at hand: a model of the machine, held to facts.

    tools/cuda/gpu_model.py                 one query and batches on every GPU named here, with the bottleneck
    tools/cuda/gpu_model.py --waves         how evenly the exact kernel's rounds share rows out
    tools/cuda/gpu_model.py --update        write the tables of docs/deploy.md anew

In: machine code (instructions.json), occupancy (resources.json), the launcher's own choices of shape, and a
few figures of each GPU. Out: time and what bounds it. Everything is predicted and labelled so.

The warps of a multiprocessor circulate between three places: its quarters' issue slots, where a unit of work
takes as many clocks as its busiest pipe; its share of the memory; and a delay in which nobody waits for
another, the memory's latency. Mean-value analysis of that closed network gives its throughput: exact where
times are exponential, and below the bounds, as no pipe is ever quite full. To it come clocks that do not
depend on the rows: the look at the terms before them, exact scores and the merge after them. They are counted
(`fixed_clocks`). Of an older form of the kernel there was a simulation (GPGPU-Sim, a quarter of a T4), whose
own fixed clocks `simulated_clocks` has; tests/tools/cuda/test_gpu_model.py holds the model to it with them.

Long because the machine, what is counted of the kernels and the tables made of both are one chain of figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from cir_infer.scoring.cuda.shapes import (  # noqa: E402
    first_rows,
    list_capacity,
    most_of_block,
    shared_out,
    shortlist_shape,
    stage_growth,
)
from cir_infer.scoring.cuda.tuning import tuning_for  # noqa: E402
from tools.cuda.build_cuda import between  # noqa: E402

__all__ = ["GPUS", "Gpu", "Prediction", "batch", "beside", "gpu_like", "one_query", "wave_efficiency"]

SCORE = ROOT / "kernels" / "score" / "cuda"
QUARTERS = 4
"""Of a multiprocessor, each with a scheduler of its own."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: its name.
        architecture: compute capability times ten.
        multiprocessors: how many.
        clock: hertz under load.
        bandwidth: of its memory, published, bytes a second.
        readable: share of it that a kernel which only reads reaches: an assumption until measured.
        latency: clocks from a load to its value, from memory that is not crowded.
        float32: clocks that a quarter's float32 pipe takes for an instruction of a warp.
        tensor: float16 multiply-accumulates a clock of a quarter's tensor core, as mma.sync reaches them.
        cache: bytes a clock that a multiprocessor gets from the second-level cache.
        shared_bytes: most shared memory of a block.
        float64: float64 operations a clock of a multiprocessor.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock: float
    bandwidth: float
    readable: float
    latency: float
    float32: int
    tensor: float
    cache: float
    shared_bytes: int
    float64: float = 2


# Clocks, bandwidths, multiprocessors and matrix rates as published, the last as multiply-accumulates with
# float32 sums; from Hopper on 63% of it, which is what mma.sync reaches (arXiv 2402.13499). Latencies,
# readable shares and the cache's rate are what such chips are known for; measurements should replace them.
GPUS = (
    Gpu("T4", 75, 40, 1.35e9, 320e9, 0.87, 650, 2, 128, 24, 65_536),
    Gpu("Jetson Orin Nano 8GB (15 W)", 87, 8, 0.625e9, 68e9, 0.83, 550, 1, 256, 24, 166_912),
    Gpu("Jetson Orin Nano 8GB Super (MAXN)", 87, 8, 1.02e9, 102e9, 0.83, 650, 1, 256, 24, 166_912),
    Gpu("Jetson Orin NX 16GB", 87, 8, 0.918e9, 102.4e9, 0.83, 650, 1, 256, 24, 166_912),
    Gpu("Jetson AGX Orin 64GB", 87, 16, 1.3e9, 204.8e9, 0.83, 700, 1, 256, 24, 166_912),
    Gpu("Jetson AGX Thor (T5000)", 110, 20, 1.57e9, 273e9, 0.83, 700, 1, 640, 24, 232_448),
    Gpu("L4", 89, 58, 1.7e9, 300e9, 0.90, 750, 1, 128, 24, 101_376),
    Gpu("A10", 86, 72, 1.5e9, 600e9, 0.90, 750, 1, 128, 24, 101_376),
    Gpu("A100", 80, 108, 1.41e9, 1935e9, 0.90, 700, 1, 256, 24, 166_912, 32),
    Gpu("H100", 90, 132, 1.755e9, 3350e9, 0.92, 900, 1, 336, 22, 232_448, 64),
    Gpu("H200", 90, 132, 1.755e9, 4800e9, 0.92, 900, 1, 336, 22, 232_448, 64),
)
NAMED = ("T4", "Jetson Orin Nano 8GB (15 W)", "Jetson AGX Orin 64GB", "L4", "H200")
"""Those that the wave table shows."""

AROUND = 185
"""Instructions of a unit of four rows outside of the loop, counted in the machine code for sm_90: addresses,
sums over the warp, the comparison with the floor."""
AROUND_FLOAT32 = 22
"""Of these, float32."""
TERMS, SELECTION, STAGE_OF_SORT = 1_500, 1_000, 50
"""Clocks of the look at the terms, of a selection by a block, of a stage of its sort: barriers of 40 clocks,
some 10 of which stand in the first two, shuffles and shared memory between them."""
TRIPS, CACHED, OF_MEMORY = 3, 9, 0.4
"""Waits for memory that follow one another outside of the scan: the table of rows, the terms, the rows of
exact scores; and for what is in the second-level cache, whose latency is that part of memory's: counts,
peaks, keys, tickets, terms."""
FLOAT64_STEP, FLOAT64_CHAIN = 4.5, 40
"""Operations in float64 for a value of a row and a term: four, and a square for two terms; clocks of a step
of a sum."""
BEYOND = 6.7
"""What an H200 took beside the scan of 100,000 float16 rows (0.059 of 0.088 ms) over what is counted here:
above all instructions that are fetched anew by every launch, and blocks that wait for one of their warps.
Others are taken to be no better. Measured before a floor of all blocks took a tenth of the instructions
(kernels/score/cuda/README.md), which no prediction counts as a gain until a GPU has."""
LAUNCH = 3e-6
"""Seconds between two kernels of a stream."""


class Prediction(NamedTuple):
    """What a call should take.

    Attributes:
        milliseconds: of all its queries.
        bottleneck: "memory", "issue", "float32", "tensor", "cache" or "fixed".
        share: of the time that reading the same bytes would take, or of the matrix rate for batches.
    """

    milliseconds: float
    bottleneck: str
    share: float


class Unit(NamedTuple):
    """Work of a warp between two waits: bytes from memory, and clocks of each pipe."""

    bytes: float
    pipes: dict[str, float]


@functools.cache
def _table(name: str) -> dict[str, Any]:
    return dict(json.loads((SCORE / name).read_text())["kernels"])


def _loop(kernel: str, gpu: Gpu) -> dict[str, float]:
    return dict(_table("instructions.json")[kernel][f"sm_{gpu.architecture}"]["loops"][0])


def _instructions(kernel: str, gpu: Gpu, loads: int) -> float:
    """Of a pass that loads so often, where the loop may hold several passes."""
    loop = _loop(kernel, gpu)
    return loop["instructions"] * loads / loop["loads"]


def warps_of(kernel: str, gpu: Gpu) -> float:
    """Warps of a multiprocessor."""
    return float(_table("resources.json")[kernel][f"sm_{gpu.architecture}"]["warps"])


def throughput(pipe: float, memory: float, delay: float, warps: float) -> float:
    """Units a clock of a multiprocessor by mean-value analysis of a closed network.

    Args:
        pipe: clocks of the busiest pipe of a quarter for a unit; each quarter has one.
        memory: clocks of the multiprocessor's share of the memory for a unit.
        delay: clocks in which nobody waits for another.
        warps: that circulate in the multiprocessor.
    """
    queue_pipe = queue_memory = units = 0.0
    for present in range(1, max(1, round(warps)) + 1):
        # Which of the quarters a warp goes to is as good as chance.
        at_pipe, at_memory = pipe * (1 + queue_pipe), memory * (1 + queue_memory)
        units = present / (at_pipe + at_memory + delay)
        queue_pipe, queue_memory = units * at_pipe / QUARTERS, units * at_memory
    return units


def scan_unit(dtype: str, dim: int, gpu: Gpu) -> Unit:
    """Four rows of the exact kernel, two weighted terms."""
    loop = _loop(f"scan_{dtype}_ratio2", gpu)
    itemsize = {"f32": 4, "f16": 2, "i8": 1}[dtype]
    # A pass of the loop takes two vectors of 16 bytes a lane.
    passes = math.ceil(dim * itemsize / 16 / 32) / 2
    issue = passes * loop["instructions"] + AROUND
    float32 = gpu.float32 * (passes * loop["float32"] + AROUND_FLOAT32)
    return Unit(4 * dim * itemsize, {"issue": issue, "float32": float32})


def _per_unit(gpu: Gpu, unit: Unit, warps: float, ahead: bool = False) -> tuple[float, str]:
    """Clocks of a multiprocessor for a unit, and what bounds it.

    With `ahead` a warp asks for a unit while it works on the one before, and the memory for several units of
    64 bytes of each row at once, so that most are in the second-level cache when a warp asks.
    """
    memory = unit.bytes / (gpu.bandwidth * gpu.readable / gpu.clock / gpu.multiprocessors)
    name, pipe = max(unit.pipes.items(), key=lambda item: item[1])
    delay = gpu.latency
    if ahead:
        together = 4 if gpu.architecture >= 80 else 2
        near = max(0.0, OF_MEMORY * gpu.latency - pipe)
        delay = near + (max(0.0, gpu.latency - pipe) - near) / together
    return 1 / throughput(pipe, memory, delay, warps), "memory" if memory >= pipe / QUARTERS else name


def exact_rows(gpu: Gpu, rows: int, k: int) -> float:
    """Rows whose exact scores the busiest block of the exact kernel works out."""
    run, blocks = shared_out(rows, 2 * gpu.multiprocessors)
    if rows <= run * blocks or blocks == 1:
        return min(1.05 * k, rows / blocks)  # none has heard of the others
    mean = 2 * k / blocks
    return mean + 2 * math.sqrt(mean) + 1


def fixed_clocks(gpu: Gpu, rows: int, k: int, dim: int = 512) -> float:
    """Clocks of one exact launch that do not depend on the rows, two weighted terms."""
    stages = math.ceil(math.log2(max(2, k)))
    exact = exact_rows(gpu, rows, k)
    # The blocks of a multiprocessor share its float64 pipe; eight warps of a block take four rows each.
    busy = 2 * exact * 2 * dim * FLOAT64_STEP / gpu.float64
    chain = math.ceil(exact / 32) * 2 * dim / 8 * FLOAT64_CHAIN
    waits = gpu.latency * (TRIPS + OF_MEMORY * CACHED)
    sorting = STAGE_OF_SORT * stages * (stages + 1) / 2
    return BEYOND * (TERMS + 3 * SELECTION + sorting + waits + max(busy, chain))


def simulated_clocks(gpu: Gpu, rows: int, k: int, dim: int = 512) -> float:  # noqa: ARG001
    """The same of the kernel that was simulated: terms; cut, scores and sorting; the merge, and its keys."""
    blocks = shared_out(rows, 2 * gpu.multiprocessors)[1]
    return 8_500 + 32_000 * max(1.0, k / 50) + 5_800 + 4.7 * 0.65 * k * blocks


def one_query(
    gpu: Gpu,
    rows: int,
    dtype: str = "f16",
    dim: int = 512,
    k: int = 50,
    clocks_beside: Callable[[Gpu, int, int, int], float] = fixed_clocks,
) -> Prediction:
    """One query through the exact kernel."""
    unit = scan_unit(dtype, dim, gpu)
    clocks, bound = _per_unit(gpu, unit, warps_of(f"scan_{dtype}_ratio2", gpu))
    spent = rows / 4 / gpu.multiprocessors / wave_efficiency(gpu, rows) * clocks
    fixed = clocks_beside(gpu, rows, k, dim)
    read = 1e3 * rows * unit.bytes / 4 / (gpu.bandwidth * gpu.readable)
    total = 1e3 * (spent + fixed) / gpu.clock
    return Prediction(total, bound if spent >= fixed else "fixed", read / total)


EPILOGUE = 160
"""Instructions of the tensor-core kernel for 32 rows of 8 queries, outside of its loop."""
BESIDE_STAGES = 3
"""Launches of a batch beside two of each stage, shortlist and lists: pack, exact scan of the first rows,
rescue."""


class Stages(NamedTuple):
    """How a batch goes through the gallery: its first rows, then stages that grow by a factor."""

    first: int
    growth: int
    stages: int


def stages_of(gpu: Gpu, rows: int, queries: int, k: int, *, shadow: bool = False) -> Stages:
    """As the scorer plans them; with an int8 shadow of other rows, whose bounds are wider."""
    tuning = tuning_for(gpu.architecture)
    first, capacity = first_rows(tuning, queries, k), list_capacity(tuning, queries, k)
    expected = (4 if shadow else 1) * k
    widest = max(2, capacity // (4 * expected))
    growth = stage_growth(tuning, queries, expected, first, max(rows, first + 1), widest)
    return Stages(first, growth, math.ceil(math.log(max(1.0001, rows / first)) / math.log(growth) - 1e-9))


def through_tensor_cores(gpu: Gpu, rows: int, dim: int = 512, k: int = 50, stored: str = "i8") -> Prediction:
    """One query through `few_i8`, which lists what the exact kernel then scores.

    Args:
        gpu: which.
        rows: how many.
        dim: of the rows.
        k: of the answer.
        stored: type of the rows; if that is not int8, `few_i8` reads their int8 shadow.
    """
    instructions, passes = _instructions("few_i8_ratio2", gpu, 4), math.ceil(dim / 64)
    products = 2 * 4 * 4 * 2048  # multiply-accumulates: tiles of rows, matrix steps, tiles of columns
    pipes = {"issue": instructions + EPILOGUE / passes, "tensor": products / gpu.tensor}
    clocks, bound = _per_unit(gpu, Unit(32 * 64, pipes), warps_of("few_i8_ratio2", gpu), ahead=True)
    first, _, stages = stages_of(gpu, rows, 1, k, shadow=stored != "i8")
    if rows <= first:
        return one_query(gpu, rows, stored, dim, k)
    spent = (rows - first) / 32 * passes / gpu.multiprocessors * clocks
    # The blocks that score a list hear of one another like those of a scan.
    lists, launches = stages * fixed_clocks(gpu, first, k, dim), BESIDE_STAGES + 2 * stages
    rest = one_query(gpu, first, stored, dim, k).milliseconds + 1e3 * (lists / gpu.clock + launches * LAUNCH)
    total = 1e3 * spent / gpu.clock + rest
    read = 1e3 * rows * dim / (gpu.bandwidth * gpu.readable)
    return Prediction(total, bound if 2e3 * spent / gpu.clock > total else "fixed", read / total)


def one_int8_query(gpu: Gpu, rows: int, dim: int = 512, k: int = 50) -> Prediction:
    """One query on int8 rows, the way that the scorer takes on this GPU."""
    tuning = tuning_for(gpu.architecture)
    listed = tuning.int8_queries == 1 and rows >= tuning.int8_rows
    return through_tensor_cores(gpu, rows, dim, k) if listed else one_query(gpu, rows, "i8", dim, k)


def exact_from_int8(gpu: Gpu, rows: int, stored: str = "f16", dim: int = 512, k: int = 50) -> Prediction:
    """One query on rows of which the scorer keeps an int8 shadow."""
    if rows < tuning_for(gpu.architecture).rows:
        return one_query(gpu, rows, stored, dim, k)
    return through_tensor_cores(gpu, rows, dim, k, stored)


def wave_efficiency(gpu: Gpu, rows: int) -> float:
    """Rows of all blocks of the exact kernel over what they could take while the busiest one works."""
    most = 2 * gpu.multiprocessors
    return rows / (most_of_block(rows, *shared_out(rows, most)) * most)


def batch(
    gpu: Gpu,
    rows: int,
    queries: int,
    dim: int = 512,
    k: int = 50,
    dtype: str = "f16",
    *,
    shadow: bool = False,
) -> Prediction:
    """Queries through the tensor cores, two weighted terms; `share` is of the matrix rate.

    Args:
        gpu: which.
        rows: how many.
        queries: how many.
        dim: of the rows.
        k: of the answer.
        dtype: "f16" or "i8", of what the tensor cores read.
        shadow: that is an int8 shadow of other rows.
    """
    steps, tiles = dim // 16, 4
    shape = shortlist_shape(gpu.shared_bytes, queries, tiles, steps)
    assert shape is not None
    kernel = f"{shape.family}_{dtype}_ratio2"
    instructions, warps = _instructions(kernel, gpu, 2 * shape.row_tiles), warps_of(kernel, gpu)
    taken = 8 * shape.groups * shape.warps  # queries of a block
    across = math.ceil(queries / taken)
    steps_of_pass = {"f16": 2, "i8": 4}[dtype]  # of 16 values, in the 64 bytes that a pass takes of a row
    products = shape.row_tiles * steps_of_pass * shape.groups * tiles * 2048  # multiply-accumulates
    pass_rows = 16 * shape.row_tiles
    # The rows of a pass, 64 bytes each, are shared by warps beside each other and read again by other blocks.
    brought = pass_rows * 64 / shape.warps
    cache = brought * QUARTERS / gpu.cache
    pipes = {"issue": instructions, "tensor": products / gpu.tensor, "cache": cache}
    unit = Unit(brought / across, pipes)
    clocks, bound = _per_unit(gpu, unit, warps, ahead=True)
    passes = rows / pass_rows * (steps / steps_of_pass) * across * shape.warps / gpu.multiprocessors
    seconds = passes * clocks / gpu.clock
    first, growth, stages = stages_of(gpu, rows, queries, k, shadow=shadow)
    listed = first + stages * (4 if shadow else 1) * k * (growth - 1)
    tuning = tuning_for(gpu.architecture)
    exact = queries * listed * tuning.listed_row * 1e-9 + stages * tuning.stage * 1e-6
    # In float64 once a query where one block has it to itself, else in every stage.
    settled = 1.05 * k + (0 if 2 * gpu.multiprocessors < 2 * queries else stages * k * (growth - 1) / growth)
    exact += queries * settled * 2 * dim * FLOAT64_STEP / gpu.float64 / gpu.multiprocessors / gpu.clock
    if exact > seconds:
        bound = "fixed"
    total = seconds + exact
    useful = 4 * rows * dim * queries / (gpu.tensor * QUARTERS * gpu.multiprocessors * gpu.clock)
    return Prediction(1e3 * total, bound, useful / total)


class Simulated(NamedTuple):
    """A run of the compiled kernel on GPGPU-Sim: a quarter of a T4, blocks truly at once, its clocks."""

    dtype: str
    rows: int
    clocks: int


QUARTER_T4 = replace(GPUS[0], name="a quarter of a T4", multiprocessors=10, bandwidth=80e9)
SIMULATED = (
    Simulated("f16", 5_120, 157_535),
    Simulated("f16", 10_240, 255_156),
    Simulated("i8", 10_240, 183_345),
    Simulated("i8", 20_480, 300_971),
)

SIZES = (1_000, 3_000, 8_000, 15_000, 32_000, 65_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
BEGIN, END = "<!-- {}:begin -->\n", "<!-- {}:end -->\n"


def gpu_like(name: str, architecture: int, multiprocessors: int) -> Gpu:
    """The GPU of this table that a driver calls so, or what is like it most, with as many multiprocessors."""
    words = set(name.split())
    of_table = [gpu for gpu in GPUS if gpu.name in words and gpu.multiprocessors == multiprocessors]
    nearest = min(
        GPUS,
        key=lambda gpu: (abs(gpu.architecture - architecture), abs(gpu.multiprocessors - multiprocessors)),
    )
    return of_table[0] if of_table else replace(nearest, name=name, multiprocessors=multiprocessors)


SHADOWED = "cir/cuda-exact-from-int8"
"""What the benchmark calls a scorer that keeps an int8 shadow of its rows."""


def beside(measured: dict[str, Any], gpu: Gpu) -> list[dict[str, Any]]:
    """Each measurement of a benchmark that the model knows of, with its prediction.

    The rate of reading is the measured one where there is one: it is the first thing that the model assumes.

    Args:
        measured: what `cir_bench.cuda_scoring` found.
        gpu: as of `gpu_like`.
    """
    found = []
    for case in measured.get("cases", []):
        entries = {
            (entry["name"], entry["dtype"]): entry for entry in case["results"] if entry.get("median_ms")
        }
        for (name, dtype), entry in entries.items():
            stored = {"float32": "f32", "float16": "f16", "int8": "i8"}.get(dtype, "")
            queries, shadow = case["queries"], name == SHADOWED
            scanned = "i8" if shadow else stored
            batched = queries > 1
            if name not in ("cir/cuda", SHADOWED) or not stored:
                continue
            if batched and (scanned == "f32" or queries < 9):
                continue
            here, over, size = gpu, entry.get("of_roofline"), (case["rows"], case["dim"], case["k"])
            if over and not batched:
                nbytes = case["rows"] * case["dim"] * {"f32": 4, "f16": 2, "i8": 1}[scanned]
                here = replace(gpu, bandwidth=nbytes * over / (1e-3 * entry["median_ms"]), readable=1.0)
            predicted = (
                batch(here, size[0], queries, *size[1:], scanned, shadow=shadow)
                if batched
                else exact_from_int8(here, size[0], stored, *size[1:])
                if shadow
                else one_int8_query(here, *size)
                if stored == "i8"
                else one_query(here, size[0], stored, *size[1:])
            )
            found.append(
                {
                    "kind": "predicted",
                    "name": name,
                    "rows": case["rows"],
                    "queries": case["queries"],
                    "dtype": dtype,
                    "predicted_ms": predicted.milliseconds,
                    "bottleneck": predicted.bottleneck,
                    "measured_ms": entry["median_ms"],
                }
            )
    return found


def waves_table() -> str:
    """Efficiency of the rounds over sizes, as Markdown."""
    gpus = [gpu for gpu in GPUS if gpu.name in NAMED]
    lines = ["| rows | " + " | ".join(gpu.name for gpu in gpus) + " |", "|---" * (len(gpus) + 1) + "|"]
    for rows in SIZES:
        cells = [f"{wave_efficiency(gpu, rows):.2f}" for gpu in gpus]
        lines.append(f"| {rows:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def scoring_table(rows: int = 1_000_000) -> str:
    """One query on every GPU, as Markdown."""
    lines = [
        "| GPU | float16 | int8 | float32 | exact from int8, of float16 | of float32 "
        "| share of reading: float16, int8, exact from int8 |",
        "|---" * 7 + "|",
    ]
    for gpu in GPUS:
        f16, i8, f32 = one_query(gpu, rows), one_int8_query(gpu, rows), one_query(gpu, rows, "f32")
        shadowed = [exact_from_int8(gpu, rows, stored) for stored in ("f16", "f32")]
        cells = [_cell(one) for one in (f16, i8, f32, *shadowed)]
        cells.append(", ".join(f"{one.share:.2f}" for one in (f16, i8, shadowed[0])))
        lines.append(f"| {gpu.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def batches_table(rows: int = 1_000_000) -> str:
    """Batches on every GPU, as Markdown."""
    sizes = (64, 1024)
    kinds = ("float16", "int8", "exact from int8")
    heads = [f"{queries:,} queries, {kind}" for queries in sizes for kind in kinds]
    lines = [f"| GPU | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for gpu in GPUS:
        cells = [
            _cell(batch(gpu, rows, queries, dtype=dtype, shadow=shadow))
            for queries in sizes
            for dtype, shadow in (("f16", False), ("i8", False), ("i8", True))
        ]
        lines.append(f"| {gpu.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(predicted: Prediction) -> str:
    return f"{predicted.milliseconds:.3g} ms, {predicted.bottleneck}"


def replaced(text: str, name: str, table: str) -> str:
    """A page with one of the tables written anew."""
    return between(text, BEGIN.format(name), table, END.format(name))


def page(text: str) -> str:
    """docs/deploy.md with its tables of this model."""
    tables = {"model": scoring_table(), "batches": batches_table(), "waves": waves_table()}
    for name, table in tables.items():
        text = replaced(text, name, table)
    return text


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--waves", action="store_true", help="how evenly rows are shared out")
    parser.add_argument("--update", action="store_true", help="write docs/deploy.md's tables")
    args = parser.parse_args()
    docs = ROOT / "docs" / "deploy.md"
    if args.update:
        docs.write_text(page(docs.read_text("utf-8")), "utf-8")
    elif args.waves:
        print(waves_table(), end="")
    else:
        print(f"{scoring_table()}\n{batches_table()}", end="")
        print("\nheld against the simulation of a quarter of a T4, clocks:")
        for run in SIMULATED:
            one = one_query(QUARTER_T4, run.rows, run.dtype, clocks_beside=simulated_clocks)
            clocks = one.milliseconds * 1e-3 * QUARTER_T4.clock
            print(f"  {run.dtype} {run.rows:,} rows: {clocks:,.0f} predicted, {run.clocks:,} simulated")


if __name__ == "__main__":
    main()
