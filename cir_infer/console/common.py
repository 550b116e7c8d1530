"""What every command shares: parser, exit codes, JSON output.

    parser = CirParser("cir-query", "Answer a query.", example="cir-query artemis.cir dress.jpg 'in red'")

    @run_command
    def main(arguments: Sequence[str] | None = None) -> int | None: ...

Exit codes: 0, 1 for a failure (one line on stderr), 2 for wrong usage, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cir_infer import __version__
from cir_infer.errors import CirError, UsageError

__all__ = ["CirParser", "complain", "print_json", "printable", "run_command"]

Main = Callable[[Sequence[str] | None], int | None]


class CirParser(argparse.ArgumentParser):
    """An `ArgumentParser` with the flags that every command has: --json, --verbose, --version.

    Args:
        prog: the command's name.
        description: one paragraph: what it does.
        example: one or more command lines, shown at the end of --help.
    """

    def __init__(self, prog: str, description: str, example: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"example:\n  {example.strip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        self.add_argument("-v", "--verbose", action="store_true", help="say on stderr what is being done")
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, then send the SDK's log lines to stderr: warnings, and with --verbose what it does."""
        # Flags may stand between positional arguments; argparse cannot do that with sub-commands.
        parse = self.parse_intermixed_args if self._subparsers is None else super().parse_args
        parsed = parse(args, namespace)
        logging.basicConfig(level=logging.WARNING, format=f"{self.prog}: %(message)s")
        logging.getLogger("cir_infer").setLevel(logging.INFO if parsed.verbose else logging.WARNING)
        return parsed


def run_command(main: Main) -> Callable[..., int]:
    """Turn a `main(arguments=None)` into a console entry point that ends with an exit code."""

    @functools.wraps(main)
    def entry(arguments: Sequence[str] | None = None) -> int:
        # Pillow warns of large images and odd EXIF data that this SDK reads (or refuses by an error).
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            code = main(arguments) or 0
            sys.stdout.flush()
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except BrokenPipeError:
            # The reader of our output (head, less) has left; keep the interpreter's last flush quiet.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except CirError as error:
            complain(str(error))
            return 2 if isinstance(error, UsageError) else 1
        except (OSError, MemoryError) as error:
            complain(str(error) or type(error).__name__)
            return 1
        return code

    return entry


def complain(message: str) -> None:
    """Say what is wrong on stderr: one line, nothing in it that a terminal would obey."""
    name = os.path.basename(sys.argv[0]) or "cir"  # noqa: PTH119
    print(f"{name}: {printable(' '.join(message.split()))}", file=sys.stderr)


def printable(text: str) -> str:
    """A stranger's text (an id, a path) for a terminal: control characters and the like are escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; NumPy numbers and paths are written as plain values."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")
