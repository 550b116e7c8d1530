"""How every child of Python is started: with the parent's modules, and with nothing of the current folder.

Its pipes are this process' alone. A child waits for the end of its input, and that never comes while a forked
child has a copy of the other end; so forked children close their copies before they do anything else.

`python -m` and `python -c` put the current folder first on the import path, so that a `numpy.py` which lies
beside somebody's photos would run. A child starts isolated (`-I`) instead and is told where to look.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from cir_infer.errors import DeviceError
from cir_infer.processes.announcing import announced

__all__ = ["child_command", "child_environment", "import_path", "start_child"]

_started: weakref.WeakSet[subprocess.Popen[Any]] = weakref.WeakSet()

_OWN = ("cir_infer", "cir_export", "cir_bench", "cir_eval")

_START = """\
import os, site, sys
wanted, barred, folders, packages, module = {state!r}
for folder in folders:
    site.addsitedir(folder)
own = [entry for entry in sys.path if os.path.realpath(entry) not in barred and entry not in wanted]
sys.path[:] = wanted + own
import importlib.util as util
class Pinned:
    def find_spec(name, path=None, target=None):
        if name in packages:
            file, places = packages[name]
            return util.spec_from_file_location(name, file, submodule_search_locations=places)
for name in list(packages):
    found = util.find_spec(name)
    if found is not None and found.origin == packages[name][0]:
        del packages[name]
if packages:
    sys.meta_path.insert(0, Pinned)
import runpy
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""What a child does first. `python -I` has found the standard library and the installed packages by itself;
the rest of the parent's path follows. A package of ours that is not found there, or elsewhere, because the
parent's program put it on its path, is found where the parent found it, and nothing else beside it is."""


def child_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module as a program, as `python -m module arguments` would.

    The child imports what the parent can import, from the same places, except from the current folder
    (entries "", "." and the folder itself). Start it with `start_child` and `env=child_environment()`.

    Args:
        module: dotted name.
        arguments: `sys.argv[1:]` of the module.

    Raises:
        DeviceError: this program has no Python of its own to start, e.g. a frozen one.
    """
    if getattr(sys, "frozen", False) or not sys.executable:
        raise DeviceError(
            f"{module} cannot run in a process of its own: this program was frozen or embedded and has no "
            "Python interpreter to start; decode in this process (workers=0), or run it with plain Python"
        )
    user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    state = (import_path(), _barred(), user, _own_packages(), module)
    # -I ignores PYTHONUTF8, by which names of files are decoded.
    flags = ["-I", "-W", "ignore", "-X", f"utf8={sys.flags.utf8_mode}"]
    return [sys.executable, *flags, "-c", _START.format(state=state), *arguments]


def child_environment(**changes: str) -> dict[str, str]:
    """The environment of a child: this process' own, without what makes its children import other modules.

    Args:
        changes: variables to set.
    """
    dropped = ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if name not in dropped} | changes


def start_child(command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program whose pipes no forked child of this process keeps open.

    Args:
        command: its command line.
        options: of `subprocess.Popen`.

    Raises:
        OSError: it cannot be started.
    """
    token = announced()
    try:
        child = subprocess.Popen(command, **options)
        _started.add(child)
        return child
    finally:
        del token


def _after_fork_in_child() -> None:
    for child in list(_started):
        for pipe in (child.stdin, child.stdout, child.stderr):
            with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
                # What is below: to close what buffers would be to send what it holds.
                getattr(pipe, "buffer", pipe).raw.close()  # type: ignore[union-attr]


def import_path(entries: Iterable[str] | None = None) -> list[str]:
    """The import path of this process (or `entries`) without the current folder and relative entries."""
    barred = _barred()
    kept: list[str] = []
    for entry in sys.path if entries is None else entries:
        if Path(entry).is_absolute() and _resolved(entry) not in barred and entry not in kept:
            kept.append(entry)
    return kept


def _barred() -> list[str]:
    """The current folder, unless Python or its packages are installed right there."""
    here = _resolved(".")
    installed = (*site.getsitepackages(), str(Path(os.__file__).parent))
    return [] if here in map(_resolved, installed) else [here]


def _own_packages() -> dict[str, tuple[str, list[str]]]:
    """File and folders of our packages as this process has them."""
    loaded = ((name, sys.modules.get(name)) for name in _OWN)
    return {
        name: (module.__file__, [str(place) for place in module.__path__])
        for name, module in loaded
        if isinstance(module, ModuleType) and module.__file__ is not None
    }


def _resolved(entry: str) -> str:
    try:
        return os.path.realpath(entry)
    except OSError:
        return entry


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
