#!/usr/bin/env python3
"""All that can be done before a release, one step after the other; each says what it found.

make release-check
python3 tools/release_check.py --only version --tag v0.2.0
python3 tools/release_check.py --emulated arm64-bookworm arm64-trixie    # the wheels for aarch64, too
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import build_wheels  # noqa: E402
import check_wheel  # noqa: E402

EMULATED_RUNTIME = "onnxruntime==1.20.1"
"""Newer ones end with a signal when qemu 7.2 imports them, with or without cir-infer."""

WORKFLOWS = ("check-jsonschema>=0.33", "zizmor>=1.10")


def version() -> str:
    """The one place that says it."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "cir_infer" / "__init__.py").read_text("utf-8"))
    if found is None:
        sys.exit("cir_infer/__init__.py states no __version__")
    return found[1]


def check_version(tag: str | None) -> None:
    """The tag, the changelog and the citation agree with the version."""
    stated = version()
    if tag is not None and tag != f"v{stated}":
        sys.exit(f"the tag is {tag}, cir_infer.__version__ is {stated}; they must agree")
    if f"## {stated}" not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        sys.exit(f"CHANGELOG.md has no section {stated}")
    if f"version: {stated}" not in (ROOT / "CITATION.cff").read_text("utf-8"):
        sys.exit(f"CITATION.cff states another version than {stated}")
    print(f"version {stated}: changelog and citation agree" + (f", and the tag {tag}" if tag else ""))


def check_clean() -> None:
    """Nothing is uncommitted."""
    left = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if left.stdout:
        sys.exit(f"not committed:\n{left.stdout}")
    print("everything is committed")


def check_workflows() -> None:
    """Against their schema, and for what an attacker could use."""
    programs = build_wheels.tools(ROOT / "build" / "wheels" / "tools")
    build_wheels.run(programs / "python", "-m", "pip", "install", "--quiet", *WORKFLOWS)
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    build_wheels.run(programs / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    build_wheels.run(programs / "zizmor", "--offline", "--min-severity", "medium", ".github")
    if shutil.which("actionlint"):
        build_wheels.run("actionlint", *files)
    else:
        print("actionlint is not here: expressions and shell lines in the workflows were not looked at")


def check_suite() -> None:
    """Lint, types, tests."""
    build_wheels.run("make", "test")


def check_documentation() -> None:
    """The site builds without a warning."""
    build_wheels.run("make", "docs")


def check_wheels() -> None:
    """Built, audited, installed into empty environments and asked a question."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    build_wheels.run("make", "wheels")
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    for wheel in wheels:
        tag = wheel.name.split("-")[2]
        if not wheel.name.endswith("x86_64.whl"):
            continue
        minors = range(12, 20) if "-abi3-" in wheel.name else [int(tag.removeprefix("cp3"))]
        for minor in minors:
            found = build_wheels.interpreter(f"python3.{minor}")
            if found is not None:
                build_wheels.run(sys.executable, "tools/check_wheel.py", wheel, "--python", found[0])


def check_emulated(roots: list[Path]) -> None:
    """The wheels for aarch64, asked by the Pythons of unpacked Debians under an emulator."""
    wheels = sorted((ROOT / "dist").glob("*aarch64.whl"))
    asked = []
    for root in roots:
        minor = int(check_wheel.emulated_python(root).name.removeprefix("python3."))
        tag = f"cp3{minor}-cp3{minor}" if minor < 12 else "cp312-abi3"
        for wheel in (wheel for wheel in wheels if tag in wheel.name):
            asked.append(wheel)
            with_ = ["--with", EMULATED_RUNTIME]
            build_wheels.run(sys.executable, "tools/check_wheel.py", wheel, "--emulated", root, *with_)
    for wheel in wheels:
        if wheel not in asked:
            print(f"{wheel.name} was built and audited, not asked: --emulated names a system that can run it")


STEPS: dict[str, Callable[[], None]] = {
    "clean": check_clean,
    "workflows": check_workflows,
    "suite": check_suite,
    "docs": check_documentation,
    "wheels": check_wheels,
}


def main() -> None:
    """Every step, or one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["version", *STEPS])
    parser.add_argument("--tag", help="the tag of the release")
    parser.add_argument(
        "--emulated",
        nargs="+",
        type=Path,
        default=[],
        metavar="ROOT",
        help="unpacked Debians for arm64 (CONTRIBUTING.md), whose Pythons ask the wheels for aarch64",
    )
    args = parser.parse_args()
    if args.only in (None, "version"):
        check_version(args.tag)
    for name, step in STEPS.items():
        if args.only in (None, name):
            step()
    if args.only in (None, "wheels"):
        check_emulated([root.resolve() for root in args.emulated])


if __name__ == "__main__":
    main()
