"""`cir-bench`: one sub-command a module of this package, imported only when it is the one called.

The protocol of a sub-command module:

    EXAMPLE: str                                         # one line, shown at the end of --help
    def add_arguments(parser: argparse.ArgumentParser) -> None
    def run(args: argparse.Namespace) -> int             # the exit code; raises CirError on failure

and one line in `SUBCOMMANDS` below.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from cir_infer.errors import CirError, UsageError

__all__ = ["SUBCOMMANDS", "main"]

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "scenes": ("cir_bench.commands.scenes", "generate the composed-retrieval data set of scenes"),
    "scoring": ("cir_bench.commands.scoring", "time exact scorers against the read roofline"),
}
"""Sub-command -> (module, one line of help)."""


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen sub-command's module is imported, so `--help` stays quick."""
    parser = argparse.ArgumentParser(
        prog="cir-bench",
        description="Data sets, protocols and measurements of cir-infer.",
        epilog="example: cir-bench scenes /data/scenes --gallery 5000 --seed 0",
    )
    subparsers = parser.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for name, (module_name, summary) in SUBCOMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, description=summary.capitalize() + ".")
        if name == chosen:
            module = importlib.import_module(module_name)
            sub.epilog = f"example: {module.EXAMPLE}"
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run `cir-bench`.

    Returns:
        0 done, 1 failed (one line on stderr), 2 wrong usage, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    args = _parser(chosen).parse_args(arguments)
    try:
        return int(args.run(args))
    except CirError as error:
        print(f"cir-bench {args.subcommand}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(f"cir-bench {args.subcommand}: interrupted", file=sys.stderr)
        return 130
