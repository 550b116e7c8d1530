"""`cir-bench`: one sub-command a module of this package, imported only when it is the one called.

The protocol of a sub-command module:

    EXAMPLE: str                                         # a command line, shown at the end of --help
    def add_arguments(parser: argparse.ArgumentParser) -> None    # --json and --verbose are there already
    def run(args: argparse.Namespace) -> int             # the exit code; raises CirError on failure

and one line in `SUBCOMMANDS` below.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cir_infer import __version__
from cir_infer.console.common import CirParser, HelpFormatter, run_command

__all__ = ["SUBCOMMANDS", "main"]

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "ablation": (
        "cir_bench.commands.ablation",
        "train ARTEMIS or SAC and its parts alike, and tabulate recall",
    ),
    "accuracy": ("cir_bench.commands.accuracy", "recall of a bundle on a data set, under a protocol"),
    "compare": ("cir_bench.commands.compare", "ours against PyTorch, ONNX Runtime and the literal loop"),
    "doctor": ("cir_infer.machine.command", "check this machine: what would run where, and why not"),
    "emoji": (
        "cir_bench.commands.emoji",
        "build the composed-retrieval data set of emoji from public packages",
    ),
    "explain": ("cir_bench.commands.explain", "are explanations true: against Grad-CAM and occlusion"),
    "gallery": ("cir_bench.commands.gallery", "what the store costs: open, filter, compact, index"),
    "latency": ("cir_bench.commands.latency", "time a bundle over a gallery: stages, load, cold start"),
    "report": ("cir_bench.commands.report", "results as a page with plots, as tables; regressions"),
    "scale": ("cir_bench.commands.scale", "what shards cost; how many machines more rows need, simulated"),
    "scenes": ("cir_bench.commands.scenes", "generate the composed-retrieval data set of scenes"),
    "scoring": ("cir_bench.commands.scoring", "time exact scorers against the read roofline"),
    "serve": ("cir_bench.commands.serve", "what HTTP adds, throughput, overload, against a plain handler"),
    "systems": ("cir_bench.commands.systems", "train every system alike: recall, parameters, time"),
    "table7": ("cir_bench.commands.table7", "replay the efficiency table of the ARTEMIS paper"),
}
"""Sub-command -> (module, one line of help)."""


@run_command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run `cir-bench`: 0 done, 1 failed (one line on stderr), 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in SUBCOMMANDS:
        _overview().parse_args(given)
    name, *rest = given
    module_name, summary = SUBCOMMANDS[name]
    module = importlib.import_module(module_name)
    parser = CirParser(f"cir-bench {name}", f"{summary[0].upper()}{summary[1:]}.", example=module.EXAMPLE)
    module.add_arguments(parser)
    return int(module.run(parser.parse_args(rest)))


def _overview() -> argparse.ArgumentParser:
    """What answers --help, --version and a command that does not exist; it never returns from a parse."""
    listing = "\n".join(f"  {name:<10}{summary}" for name, (_, summary) in SUBCOMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="cir-bench",
        description="Data sets, protocols and measurements of cir-infer.",
        epilog=f"commands:\n{listing}\n\nexample:\n  cir-bench scenes /data/scenes --gallery 5000 --seed 0",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cir-bench {__version__}")
    parser.add_argument(
        "command",
        choices=SUBCOMMANDS,
        metavar="COMMAND",
        help="see below; cir-bench COMMAND --help says more",
    )
    parser.add_argument("arguments", nargs="*", default=[], help="of the command")
    return parser
