"""Check this machine: what would run where, why not, and what to do; made to be pasted into an issue."""

from __future__ import annotations

import argparse
import shutil
import sys

from cir_infer.console.common import print_json
from cir_infer.machine.findings import examine
from cir_infer.machine.page import page

__all__ = ["EXAMPLE", "add_arguments", "run"]

EXAMPLE = "cir-bench doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None beside those that every command has."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Look at the machine and tell; 1 where nothing could answer a query."""

    def tell(question: str) -> None:
        if sys.stderr.isatty():
            print(f"\rasking {question:<30}", end="\r", file=sys.stderr, flush=True)

    found = examine(progress=tell)
    if sys.stderr.isatty():
        print(f"{'':<40}", end="\r", file=sys.stderr, flush=True)
    if args.json:
        print_json(found)
    else:
        # A file or an issue is as wide as it wants to be.
        print(page(found, shutil.get_terminal_size().columns) if sys.stdout.isatty() else page(found))
    works = {run["what"] for run in found["runs"] if run["runs"]}
    return 0 if works == {"encoders", "scoring"} else 1
