#!/usr/bin/env python3
"""A Python 3.10 for aarch64 that an emulator runs, for the wheel that no Debian has a Python for.

    python3 tools/release/emulated_310.py arm64 arm64-310 --python python3.10
    make release-check EMULATED="arm64 arm64-310"

Put together of three things: the interpreter in the wheel of cx_Freeze, a CPython 3.10 that starts frozen
programs, with its compiled modules; the standard library of this machine's Python 3.10; and the C and C++
libraries of an unpacked Debian for arm64 (CONTRIBUTING.md).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.packages import wheels  # noqa: E402
from tools.release import interpreters  # noqa: E402

INTERPRETER = (
    "cx_Freeze==7.2.10",
    "--python-version=3.10",
    "--implementation=cp",
    "--abi=cp310",
    "--platform=manylinux2014_aarch64",
)
LIBRARIES = "lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu"
LOADER = "lib/ld-linux-aarch64.so.1"

STARTUP = '''"""An ordinary Python of one for frozen programs: `[-s] [-I] (-c CODE | FILE) ARGUMENTS`."""
import os
import sys


def init(*_):
    pass


def run(*_):
    if hasattr(sys, "frozen"):
        del sys.frozen
    library = os.path.dirname(os.path.abspath(__file__))
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*given, library, os.path.join(library, "lib-dynload")]
    rest = [word for word in sys.argv[1:3] if word not in ("-s", "-I")] + sys.argv[3:]
    main = sys.modules["__main__"].__dict__
    main["__name__"] = "__main__"
    if rest[0] == "-c":
        sys.argv[:] = ["-c", *rest[2:]]
        code = compile(rest[1], "<string>", "exec")
    else:
        sys.argv[:] = rest
        with open(rest[0], "rb") as file:
            code = compile(file.read(), rest[0], "exec")
    exec(code, main)
'''


def assemble(debian: Path, out: Path, python: str) -> Path:
    """Write the root; its interpreter."""
    if not (debian / LOADER).exists():
        sys.exit(f"{debian} has no {LOADER}; expected an unpacked Debian for arm64, see CONTRIBUTING.md")
    found = interpreters.find(python)
    if found is None:
        sys.exit(f"no {python} here starts; expected a Python 3.10, whose standard library is needed")
    if found.version != (3, 10):
        named = ".".join(map(str, found.version))
        sys.exit(f"{found.program} is Python {named}; expected 3.10, whose standard library is needed")
    if out.exists():
        sys.exit(f"{out} is there already")
    for folder in LIBRARIES:
        shutil.copytree(
            debian / folder, out / folder, symlinks=True, ignore=lambda _, names: _no_libraries(names)
        )
    (out / LOADER).symlink_to("aarch64-linux-gnu/ld-linux-aarch64.so.1")
    home = out / "usr" / "lib" / "python3.10"
    unwanted = shutil.ignore_patterns("test", "site-packages", "lib-dynload", "config-*", "__pycache__")
    shutil.copytree(found.stdlib, home, ignore=unwanted)
    (home / "__startup__.py").write_text(STARTUP, "utf-8")
    with tempfile.TemporaryDirectory(prefix="cir-310-") as name:
        with zipfile.ZipFile(wheels.download(Path(name), *INTERPRETER)) as wheel:
            wheel.extractall(name)
        bases = Path(name) / "cx_Freeze" / "bases"
        shutil.copytree(bases / "lib-dynload", home / "lib-dynload")
        shutil.copytree(bases / "lib", out / "usr" / "lib", dirs_exist_ok=True)
        interpreter = out / "usr" / "bin" / "python3.10"
        interpreter.parent.mkdir()
        shutil.copy(bases / "console-cpython-310-aarch64-linux-gnu", interpreter)
        interpreter.chmod(0o755)
    # Where it looks for its library.
    (interpreter.parent / "lib").symlink_to("../lib/python3.10")
    return interpreter


def _no_libraries(names: list[str]) -> set[str]:
    """Folders, and all that is no shared library."""
    return {name for name in names if ".so" not in name}


def main() -> None:
    """Assemble it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("debian", type=Path, help="an unpacked Debian for arm64")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--python", default="python3.10", help="this machine's Python 3.10")
    args = parser.parse_args()
    print(assemble(args.debian.resolve(), args.out.resolve(), args.python))


if __name__ == "__main__":
    main()
