"""Flags that are also environment variables, for commands that containers and services start."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from cir_infer.console.home import at_home
from cir_infer.errors import shown

__all__ = ["take_environment"]

_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def take_environment(
    parser: argparse.ArgumentParser, prefix: str, environment: Mapping[str, str] | None = None
) -> None:
    """Let the environment say what the command line does not: PREFIX_PORT for --port.

    A variable is named after its flag, not after what it sets: PREFIX_NO_PAGE for --no-page.
    A flag that can be given several times takes a list, with commas between. --help names the variables.

    Args:
        parser: with all its arguments.
        prefix: e.g. "CIR_SERVE".
        environment: `os.environ` unless told otherwise.
    """
    environment = os.environ if environment is None else environment
    for action in parser._actions:
        if action.dest in ("help", "version"):
            continue
        flags = [flag for flag in action.option_strings if flag.startswith("--")]
        for flag in flags or [action.dest]:
            name = f"{prefix}_{flag.lstrip('-').replace('-', '_').upper()}"
            if not flags:
                action.help = f"{action.help} (${name})"
            if name not in environment:
                continue
            # Of all flags that set the same value, so that it is this one that counts.
            parser.set_defaults(
                **{action.dest: _value(parser, action, flag, name, at_home(environment[name]))}
            )
            action.required = False
            if not flags:
                action.nargs = "?"
    parser.epilog = (
        f"{parser.epilog}\n\nEvery flag is an environment variable, too: ${prefix}_PORT for --port; true or "
        "false for one without a value; a comma between several values."
    )


def _value(
    parser: argparse.ArgumentParser, action: argparse.Action, flag: str, name: str, text: str
) -> object:
    if action.nargs == 0:
        if text.lower() not in _YES + _NO:
            parser.error(f"${name} is {shown(text)}; expected true or false")
        optional = isinstance(action, argparse.BooleanOptionalAction)
        said = not flag.startswith("--no-") if optional else bool(action.const)
        return said if text.lower() in _YES else not said
    if action.choices is not None and text not in action.choices:
        parser.error(f"${name} is {shown(text)}; expected one of {', '.join(map(str, action.choices))}")
    if isinstance(action, argparse._AppendAction):
        return [part.strip() for part in text.split(",") if part.strip()]
    if callable(action.type):
        try:
            return action.type(text)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            parser.error(f"${name} is {shown(text)}; expected as for {flag}")
    return text
