"""What every command shares: parser, exit codes, JSON output.

    parser = CirParser("cir-query", "Answer a query.", example="cir-query artemis.cir dress.jpg 'in red'")

    @run_command
    def main(arguments: Sequence[str] | None = None) -> int | None: ...

Exit codes: 0, 1 for a failure (one line on stderr), also of a package that is not installed, 2 for wrong
usage, 130 when interrupted, 141 when whoever read standard output has left (without a word, as SIGPIPE ends
other programs), 143 when terminated (SIGTERM), which ends a command as Ctrl-C does. What was printed and
could not be written is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cir_infer import __version__
from cir_infer.console import progress
from cir_infer.console.home import at_home
from cir_infer.console.printing import (
    OneLine,
    ReaderLeft,
    json_text,
    printable,
    safe_output,
    standard_streams,
    tell_warnings,
)
from cir_infer.errors import CirError, ExportError, UsageError, brief, interrupt_in, lack, shown

__all__ = [
    "CirParser",
    "HelpFormatter",
    "check_order",
    "complain",
    "print_json",
    "printable",
    "run_command",
    "say_on_stderr",
]

Main = Callable[[Sequence[str] | None], int | None]


class HelpFormatter(argparse.HelpFormatter):
    """Paragraphs as wide as the terminal; indented lines as they stand, which people copy."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            lines += [line] if not line.strip() or line[0] == " " else textwrap.wrap(line, width)
        return "\n".join(indent + line for line in lines)


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
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--json", action="store_true", help="print one JSON object on stdout")
        self.add_argument("-v", "--verbose", action="store_true", help="say on stderr what is being done")
        self.add_argument("--version", action="version", version=f"{prog} {__version__}")

    def actions(self) -> Callable[[str, str, str], argparse.ArgumentParser]:
        """Make this a command of several actions.

        Returns:
            A function that adds one, of its name, what it does, and the arguments of an example. Every action
            takes --json as the command does.
        """
        added = self.add_subparsers(
            dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
        )

        def action(name: str, text: str, example: str) -> argparse.ArgumentParser:
            made = added.add_parser(
                name,
                help=text,
                description=text,
                epilog=f"example:\n  {self.prog} {name} {example}",
                formatter_class=HelpFormatter,
                allow_abbrev=False,
            )
            # Also behind the action; SUPPRESS keeps what was said before it.
            made.add_argument(
                "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object"
            )
            return made

        return action

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, then send the SDK's log lines to stderr: warnings, and with --verbose what it does."""
        # Flags may stand between positional arguments; argparse cannot do that with sub-commands.
        parse = self.parse_intermixed_args if self._subparsers is None else super().parse_args
        given = [at_home(argument) for argument in (sys.argv[1:] if args is None else args)]
        parsed = parse(given, namespace)
        say_on_stderr(self.prog, parsed.verbose)
        return parsed

    def error(self, message: str) -> NoReturn:
        """See `argparse.ArgumentParser.error`; the message may quote anything that was typed."""
        super().error(printable(shown(ValueError(message), 500)))


def check_order(bundle: str | os.PathLike[str], *others: str | os.PathLike[str]) -> None:
    """Refuse a bundle that stands behind what it is asked or filled with.

    Args:
        bundle: what stands where the bundle should.
        others: what stands behind it.

    Raises:
        UsageError: one of them has a bundle's name, and the first has not.
    """
    if str(bundle).endswith(".cir"):
        return
    for other in others:
        if str(other).endswith(".cir"):
            raise UsageError(
                f"{shown(str(bundle))} stands before {shown(str(other))}; the bundle (.cir) comes first"
            )


def say_on_stderr(program: str, verbose: bool) -> None:
    """Send the SDK's log lines to stderr: warnings, how far what takes long is, if `verbose` what it does."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(f"{program}: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("cir_infer").setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger(progress.__name__).setLevel(logging.INFO)


def run_command(main: Main) -> Callable[..., int]:
    """Turn a `main(arguments=None)` into a console entry point that ends with an exit code.

    Whatever ends it is one line on stderr. What is no `CirError`, and so a fault of ours, shows where it
    happened with --verbose.
    """

    @functools.wraps(main)
    def entry(arguments: Sequence[str] | None = None) -> int:
        with standard_streams(), _heard_signals() as heard:
            return ended(arguments, heard)

    def ended(arguments: Sequence[str] | None, heard: Sequence[type[KeyboardInterrupt]]) -> int:
        try:
            with safe_output(), tell_warnings():
                code = main(arguments) or 0
        except (Exception, KeyboardInterrupt) as error:
            return told(error, heard)
        return code

    def told(error: BaseException, heard: Sequence[type[KeyboardInterrupt]]) -> int:
        """Say what ended it; the exit code."""
        interrupt = interrupt_in(error)
        # At its import NumPy makes an error of one that does not say what it came of.
        lost = not isinstance(error, (CirError, OSError)) or isinstance(error.__cause__, ImportError)
        if interrupt is not None or (heard and lost):
            terminated = isinstance(interrupt, _Terminated) or (
                interrupt is None and heard[-1] is _Terminated
            )
            complain("terminated" if terminated else "interrupted")
            return 143 if terminated else 130
        if isinstance(error, ReaderLeft):
            return 141
        if isinstance(error, CirError):
            complain(str(error))
            return 2 if isinstance(error, UsageError) else 1
        if isinstance(error, OSError):
            complain(_of_the_system(error) or type(error).__name__)
        elif lacking := lack(error):
            complain(f"{lacking} ({shown(error)})" if str(error) else lacking)
        else:
            if logging.getLogger("cir_infer").isEnabledFor(logging.INFO):
                traceback.print_exc()
            complain(
                f"unexpected {type(error).__name__}: {shown(error, 500)}; this is a fault of the program, "
                "please report it with what --verbose shows"
            )
        return 1

    return entry


class _Terminated(KeyboardInterrupt):
    """Somebody asked this process to end: a service manager, a container that is stopped, `timeout`."""


@contextlib.contextmanager
def _heard_signals() -> Iterator[Sequence[type[KeyboardInterrupt]]]:
    """Which interrupts have come; SIGTERM is one, so that what was begun is put in order.

    A signal that somebody else sees to is left to them.
    """
    heard: list[type[KeyboardInterrupt]] = []

    def hear(kind: type[KeyboardInterrupt]) -> NoReturn:
        heard.append(kind)
        raise kind

    before: dict[int, Any] = {}
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, lambda *_: hear(_Terminated))
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: hear(KeyboardInterrupt))
    except ValueError:  # not the main thread
        pass
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _of_the_system(error: OSError) -> str:
    """An error of the operating system in words: what it is about, and its reason without its number."""
    if not error.strerror:
        return str(error)
    about = "" if error.filename is None else f"{shown(Path(os.fsdecode(error.filename)))}: "
    return f"{about}{lack(error) or error.strerror}"


def complain(message: str) -> None:
    """Say what is wrong on stderr: one line, nothing in it that a terminal would obey.

    A message that begins with the command's name, as that of a library may, does not say it twice.
    """
    name = os.path.basename(sys.argv[0]) or "cir"  # noqa: PTH119
    said = printable(" ".join(brief(message, ExportError.longest).split())).removeprefix(f"{name} ")
    with contextlib.suppress(OSError, ValueError):  # nobody reads stderr any more
        print(f"{name}: {said}", file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, see `json_text`."""
    print(json_text(value, getattr(sys.stdout, "encoding", None)))
