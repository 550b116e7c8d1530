"""Flags that are also environment variables, for commands that containers and services start."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping

from cir_infer.console.home import at_home
from cir_infer.errors import shown

__all__ = ["take_environment"]

# What it tells containers of a Service of the program's name: none of it is meant for the program.
_OF_KUBERNETES = re.compile(r"SERVICE_(HOST|PORT)(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_.+)?")
_ADDRESS = re.compile("(tcp|udp|sctp)://")
_YES, _NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


def take_environment(
    parser: argparse.ArgumentParser, prefix: str, environment: Mapping[str, str] | None = None
) -> None:
    """Let the environment say what the command line does not: PREFIX_PORT for --port.

    A variable is named after its flag, not after what it sets: PREFIX_NO_PAGE for --no-page.
    A flag that can be given several times takes a list, with commas between. --help names the variables.
    One of the prefix that no flag has is refused, as a flag would be.

    Args:
        parser: with all its arguments.
        prefix: e.g. "CIR_SERVE".
        environment: `os.environ` unless told otherwise.
    """
    environment = os.environ if environment is None else environment
    known = []
    for action in parser._actions:
        if action.dest in ("help", "version"):
            continue
        flags = [flag for flag in action.option_strings if flag.startswith("--")]
        for flag in flags or [action.dest]:
            name = f"{prefix}_{flag.lstrip('-').replace('-', '_').upper()}"
            known.append(name)
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
    for name in sorted(environment):
        rest = name.removeprefix(f"{prefix}_")
        if rest == name or name in known or _OF_KUBERNETES.fullmatch(rest):
            continue
        near = difflib.get_close_matches(name[:200], known, 1, 0.8)
        remedy = f"; did you mean ${near[0]}?" if near else f"; without it {parser.prog} --help lists them"
        parser.error(f"the environment has {shown(name)}, and there is no such flag{remedy}")
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
            told = ""
            if _ADDRESS.match(text):
                told = (
                    " (Kubernetes says it of a Service of this name: give that another, or set the variable)"
                )
            parser.error(f"${name} is {shown(text)}; expected as for {flag}{told}")
    return text
