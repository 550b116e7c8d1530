"""Flags that say what a generated data set holds: one for each number of its plan, called as that is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, TypeVar

__all__ = ["add_plan", "plan_of"]

P = TypeVar("P")


def add_plan(parser: argparse.ArgumentParser, default: Any, numbers: Mapping[str, str]) -> None:
    """Declare the flags.

    Args:
        parser: of the command.
        default: a plan, whose numbers are those that nobody gives.
        numbers: the plan's attribute to what it is.
    """
    for name, what in numbers.items():
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=int,
            default=value,
            metavar="N",
            help=f"{what} (default {value})",
        )


def plan_of(args: argparse.Namespace, kind: type[P], numbers: Mapping[str, str], **further: Any) -> P:
    """The plan that was asked for; what else than numbers it holds is in `further`."""
    return kind(**{name: getattr(args, name) for name in numbers}, **further)
