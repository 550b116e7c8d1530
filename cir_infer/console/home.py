"""The user's folder where ~ stands for it and no shell has put it there."""

from __future__ import annotations

import os
import re

__all__ = ["at_home"]

_BEFORE = re.compile(r"((?:--)?[\w.-]+=)?(?=~(/|$))")


def at_home(argument: str) -> str:
    """An argument with the user's folder for a ~ at its beginning, or behind `--flag=` or `name=`.

    No shell expands that of --gallery=~/shop and nothing that of a unit file; a folder called ~ is a trap.
    """
    found = _BEFORE.match(argument)
    if found is None:
        return argument
    # As it is where nobody knows the folder, which pathlib's answers with an exception.
    return found[0] + os.path.expanduser(argument[found.end() :])  # noqa: PTH111
