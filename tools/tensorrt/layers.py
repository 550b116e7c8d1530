#!/usr/bin/env python3
"""What TensorRT makes of every system's graphs: layers, fusions and sizes, as its builder reports them.

    tools/tensorrt/layers.py                    all systems, as a table
    tools/tensorrt/layers.py tirg clip4cir-sum  some of them
    tools/tensorrt/layers.py shop-int8.cir      a bundle's graphs as they are
    tools/tensorrt/layers.py --update           docs/tensorrt-layers.json and .md anew, for the systems
                                                that are named

No GPU: TensorRT for RTX builds plans without one (`make tensorrt-check`, whose downloads this uses). Which
kernels run is left to the device. Of each plan this keeps the layers for one image, text or query:

    nodes      of the ONNX graph
    layers     launches, as far as the builder tells
    products   convolutions, matrix products and fused attention, by the type of what they multiply
    moves      layers that only cast, transpose, reshape or copy
    host       layers at which the host decides what comes next
    bytes      of the plan
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
RESULT = ROOT / "docs" / "tensorrt-layers.json"
PAGE = ROOT / "docs" / "tensorrt-layers.md"
PRECISIONS: tuple[Literal["float32", "float16", "int8"], ...] = ("float32", "float16", "int8")
BUNDLE = ".cir"
BEGIN, END = "<!-- layers:begin -->\n", "<!-- layers:end -->\n"

_LAYER = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*)$")
_GROUP = re.compile(r"_myl(\d+)_\d+$")
_MOVES = re.compile(r"^__my[el]\w*?_(?:(?:Cast|Tran|Move|Resh|Conc|Copy|Slic|Spli|Fill|Repl)+)_myl")
_PRODUCTS = {"Conv": "convolution", "MatMul": "matrix product", "Gemm": "matrix product"}
_MULTIPLIES = {"correlation", "gemm"}
_HOST = {"cjmp", "shape_call", "ShapeHostToDevice"}
"""Layers at which the host decides what comes next."""
_ORDERING = {"signal", "wait"}
"""What the builder lists among the layers and launches nothing: one stream waits for another."""


def layers_of(log: str) -> list[dict[str, Any]]:
    """The layers of a plan's first profile, from what the builder says of it in detail."""
    found: list[dict[str, Any]] = []
    others = set()  # parts of the plan that are of other profiles, which not each of their layers tells
    for line in log.splitlines():
        match = _LAYER.match(line)
        if match is None:
            continue
        part = _GROUP.search(match["name"])
        group = part[1] if part else match["name"]
        if "[profile " in line:  # in its name, or of what it reads
            others.add(group)
        types = re.findall(r"Datatype: (\w+)", match["inputs"].split("Constants:")[0])
        found.append(
            {
                "name": match["name"],
                "kind": match["kind"],
                "type": types[0] if types else "",
                "nodes": re.findall(r"\[ONNX Layer: ([^\]]+)\]", line),
                "group": group,
            }
        )
    return [layer for layer in found if layer["group"] not in others and layer["kind"] not in _ORDERING]


def summary_of(layers: list[dict[str, Any]], operators: Mapping[str, str], plan_bytes: int) -> dict[str, Any]:
    """What the table shows of one plan; `operators` are those of the graph's nodes by their names."""
    products: Counter[str] = Counter()
    placed = {node for layer in layers if layer["kind"] in _MULTIPLIES for node in layer["nodes"]}
    for layer in layers:
        multiplies = layer["kind"] in _MULTIPLIES
        # A layer also names nodes of which it only finishes what another one has multiplied.
        inside = [operators.get(node, "") for node in layer["nodes"] if multiplies or node not in placed]
        kinds = [_PRODUCTS[operator] for operator in inside if operator in _PRODUCTS]
        if kinds:
            attention = len(kinds) > 1 and "Softmax" in inside
            products[f"{layer['type']} {'attention' if attention else kinds[0]}"] += 1
    return {
        "nodes": len(operators),
        "layers": len(layers),
        "products": dict(sorted(products.items())),
        "moves": sum(bool(_MOVES.match(layer["name"])) for layer in layers),
        "host": sum(layer["kind"] in _HOST for layer in layers),
        "bytes": plan_bytes,
    }


def build(content: bytes) -> tuple[str, int]:
    """The builder's log of one graph, and the bytes of its plan."""
    import tensorrt as trt

    from cir_infer.runtime.tensorrt import api, typed_by_graph
    from cir_infer.runtime.tensorrt.profiles import Limits, profiles_for

    lines: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:  # noqa: ARG002
            lines.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = typed_by_graph.create_network(builder)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        sys.exit("error: TensorRT cannot read a graph: " + " ".join(lines[-3:]))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for profile in profiles_for(
        {tensor.name: tuple(tensor.shape) for tensor in inputs}, Limits(batch=8, tokens=40)
    ):
        config.add_optimization_profile(api._profile(builder, profile))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        sys.exit("error: TensorRT cannot build a graph: " + " ".join(lines[-3:]))
    return "\n".join(lines), len(bytes(plan))


def measure(systems: list[str], keep: Path | None) -> dict[str, Any]:
    """System -> precision -> graph -> summary. In a process that finds TensorRT for RTX."""
    import onnx

    found: dict[str, Any] = {}
    for system in systems:
        for precision, name, content in _graphs(system):
            log, plan_bytes = build(content)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{Path(system).stem}-{precision}-{name}.log".replace(" ", "-")).write_text(log)
            nodes = onnx.load_from_string(content).graph.node
            operators = {node.name or node.output[0]: node.op_type for node in nodes}
            summary = summary_of(layers_of(log), operators, plan_bytes)
            found.setdefault(system, {}).setdefault(precision, {})[name] = summary
            print(f"{system}, {precision}, {name}: {summary}", file=sys.stderr, flush=True)
    return found


def _graphs(system: str) -> Iterator[tuple[str, str, bytes]]:
    """Precision, name and content of the graphs of a system, or of a bundle as they lie in it."""
    from cir_infer.bundle import Bundle
    from tests.export.plans import bundle_of, graphs_of

    if system.endswith(BUNDLE):
        bundle = Bundle(system)
        for name in bundle.manifest.graphs:
            yield bundle.manifest.precision, name, bundle.graph(name).whole()
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of(system, Path(folder) / "model.cir")
        for precision in PRECISIONS:
            for name, content in graphs_of(bundle, precision).items():
                yield precision, name, content


def table(found: dict[str, Any]) -> str:
    """All plans as Markdown."""
    lines = [
        "| system | graph | precision | nodes | layers | products | moves | host | plan |",
        "|---" * 9 + "|",
    ]
    for system, precisions in found.items():
        graphs = dict.fromkeys(name for by_graph in precisions.values() for name in by_graph)
        for graph in graphs:
            for precision, by_graph in precisions.items():
                if graph not in by_graph:
                    continue
                one = by_graph[graph]
                products = ", ".join(f"{count} {kind}" for kind, count in one["products"].items())
                lines.append(
                    f"| {system} | {graph} | {precision} | {one['nodes']} | {one['layers']} | {products} "
                    f"| {one['moves']} | {one['host']} | {one['bytes'] / 1e6:.2f} MB |"
                )
    return "\n".join(lines) + "\n"


def page(text: str, found: dict[str, Any]) -> str:
    """The page with its table anew."""
    head, rest = text.split(BEGIN)
    return head + BEGIN + table(found) + END + rest.split(END)[1]


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("systems", nargs="*", help="default: all")
    parser.add_argument("--update", action="store_true", help="write the result and the page")
    parser.add_argument("--keep", type=Path, help="folder for the builder's logs")
    args = parser.parse_args()
    if "CIR_TENSORRT_RTX" not in os.environ:
        from tools.tensorrt import check

        # The loader reads its path when a process starts.
        environment = check.rtx_environment()
        sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment).returncode)
    from cir_infer.errors import CirError
    from tests.export.plans import COMMITTED, SYSTEMS

    known = [COMMITTED, *SYSTEMS]
    unknown = [system for system in args.systems if system not in known and not system.endswith(BUNDLE)]
    if unknown:
        parser.error(f"there is no system {', '.join(unknown)}; there are {', '.join(known)}")
    try:
        found = measure(args.systems or known, args.keep)
    except CirError as error:
        sys.exit(f"error: {error}")
    if args.update:
        before = json.loads(RESULT.read_text())["systems"] if RESULT.exists() else {}
        systems = {**before, **found}
        kept = {system: systems[system] for system in known if system in systems}
        RESULT.write_text(json.dumps({"kind": "tensorrt-layers", "systems": kept}, indent=1) + "\n")
        PAGE.write_text(page(PAGE.read_text("utf-8"), kept), "utf-8")
    print(table(found), end="")


if __name__ == "__main__":
    main()
