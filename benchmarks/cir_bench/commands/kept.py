"""What a measurement does with its result: `--output` keeps it as JSON, and JSON or a text is printed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cir_infer.console.common import print_json

__all__ = ["add_output", "keep_and_print"]


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare `--output`."""
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="also write the JSON here")


def keep_and_print(
    args: argparse.Namespace, result: dict[str, Any], as_text: Callable[[dict[str, Any]], str]
) -> None:
    """Write what `--output` asks for, and print JSON with `--json`, else the text.

    Raises:
        UsageError: the file cannot be written.
    """
    from cir_bench.results import to_json, write_text

    if args.output is not None:
        write_text(args.output, to_json(result))
    if args.json:
        print_json(result)
    else:
        print(as_text(result))
