"""The Pythons of this machine by name, of pyenv too, whose programs on the PATH may start nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["Interpreter", "find"]

ASK = """
import sys, sysconfig, pathlib
print(*sys.version_info[:2])
print(sysconfig.get_path("stdlib"))
print(pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())
"""


class Interpreter(NamedTuple):
    """A Python that starts.

    Attributes:
        program: the path of its program.
        version: major and minor.
        stdlib: the folder of its standard library.
        headers: whether something can be compiled for it.
    """

    program: Path
    version: tuple[int, int]
    stdlib: Path
    headers: bool


def find(name: str, headers: bool = False) -> Interpreter | None:
    """The first of that name, or path, that starts and has its headers if they are needed; else None."""
    versions = sorted(Path.home().glob(f".pyenv/versions/{name.removeprefix('python')}*/bin/{name}"))
    for found in (shutil.which(name), *versions):
        if found is None:
            continue
        done = subprocess.run([found, "-c", ASK], capture_output=True, text=True, check=False)
        if done.returncode:
            continue
        version, stdlib, has_headers = done.stdout.splitlines()
        major, minor = map(int, version.split())
        one = Interpreter(Path(found), (major, minor), Path(stdlib), has_headers == "True")
        if one.headers or not headers:
            return one
    return None
