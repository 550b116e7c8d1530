#!/usr/bin/env python3
"""Installs a wheel into an empty environment and asks it questions, with its commands and from Python.

    python3 tools/release/check_wheel.py dist/cir_infer-...-cp312-abi3-...x86_64.whl --python python3.13
    python3 tools/release/check_wheel.py dist/cir_infer-...-cp311-...aarch64.whl --emulated ROOT
    python tools/release/check_wheel.py --installed      # what is installed beside this Python

Nothing on the PATH can compile. Says how long it took by the clock from the wheel to the first answer, how
large the environment became, and with which instruction sets it scores. ROOT is an unpacked Debian for arm64
with its Python, which qemu runs; CONTRIBUTING.md says how to get one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.release import interpreters  # noqa: E402

BUNDLE = ROOT / "tests" / "golden" / "tiny.cir"

QUESTION = """
import json, sys, time
start = time.perf_counter()
import numpy as np
from PIL import Image
from cir_infer import Engine, Gallery, Searcher, __version__
from cir_infer.scoring.cpu import instruction_sets
bundle, folder = sys.argv[1:]
engine = Engine(bundle, device="cpu")
rng = np.random.default_rng(0)
images = [rng.integers(0, 256, (20, 16, 3), np.uint8) for _ in range(40)]
gallery = Gallery.create(folder + "/checked.gallery", engine, dtype="float32")
gallery.add(images, ids=[str(n) for n in range(len(images))])
searcher = Searcher(engine, gallery)
hits = searcher.query(images[3], "is red", k=10)
took = time.perf_counter() - start
expected = Searcher(engine, gallery, scorer="reference").query(images[3], "is red", k=10)
assert [hit.id for hit in hits] == [hit.id for hit in expected], "another order than the definition's"
assert all(abs(a.score - b.score) < 1e-5 for a, b in zip(hits, expected))
refined = searcher.query(hits[2], "is longer", k=5)
assert len(refined) == 5
Image.fromarray(images[3]).save(folder + "/a.png")
print(json.dumps({"version": __version__, "python": sys.version.split()[0],
                  "loaded_torch": "torch" in sys.modules, "instruction_sets": instruction_sets(),
                  "first_answer_s": round(took, 2)}))
"""


def ask(python: list[str], folder: Path, env: dict[str, str] | None = None) -> dict[str, object]:
    """The question, asked in an empty folder; leaves with what went wrong."""
    work = folder / "work"
    work.mkdir()
    done = subprocess.run(
        [*python, "-c", QUESTION, str(BUNDLE), str(work)],
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"the question was not answered ({done.returncode}):\n{done.stdout}{done.stderr}")
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


def commands(programs: Path, folder: Path) -> None:
    """The commands of an installation: index a folder, query it."""
    photos = folder / "photos"
    photos.mkdir()
    for number in range(3):
        shutil.copy(folder / "work" / "a.png", photos / f"{number}.png")
    gallery = folder / "commands.gallery"
    asked: tuple[tuple[str, list[str | Path]], ...] = (
        ("cir-index", [BUNDLE, photos, "--gallery", gallery]),
        ("cir-query", [BUNDLE, photos / "1.png", "is red", "--gallery", gallery, "--json"]),
        ("cir-gallery", ["verify", gallery]),
    )
    for command, arguments in asked:
        done = subprocess.run(
            [programs / command, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{command} left with {done.returncode}:\n{done.stdout}{done.stderr}")


def size_mb(folder: Path) -> float:
    """What lies below a folder, in MB."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def in_empty_environment(wheel: Path, python: Path, folder: Path) -> dict[str, object]:
    """A new environment of that Python: installed from the index and no cache, asked."""
    environment = folder / "environment"
    subprocess.run([python, "-m", "venv", environment], check=True)
    site = next(environment.glob("lib/python3*/site-packages"))
    alone = {**os.environ, "PATH": str(environment / "bin")}  # no compiler, no other Python
    before, start = size_mb(site), time.perf_counter()
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    subprocess.run(
        [environment / "bin" / "python", *install, "--only-binary=:all:", wheel], env=alone, check=True
    )
    installed = time.perf_counter()
    answer = ask([str(environment / "bin" / "python"), "-I"], folder, alone)
    answered = time.perf_counter()
    commands(environment / "bin", folder)
    print(
        f"installed in {installed - start:.1f} s, answered in {answered - installed:.1f} s (Python, imports, "
        f"40 images indexed, two queries checked): {answered - start:.1f} s, where a minute is promised",
        file=sys.stderr,
    )
    return {
        **answer,
        "install_s": round(installed - start, 1),
        "from_wheel_to_answer_s": round(answered - start, 1),
        "installed_mb": round(size_mb(site) - before, 1),
    }


def emulated_python(root: Path) -> Path:
    """The Python of an unpacked Debian."""
    found = [path for path in sorted((root / "usr" / "bin").glob("python3.*")) if "config" not in path.name]
    if not found:
        sys.exit(f"{root} has no usr/bin/python3.*; CONTRIBUTING.md says how to unpack one")
    return found[0]


def emulated(wheel: Path, root: Path, folder: Path, others: list[str]) -> dict[str, object]:
    """The packages for aarch64 unpacked into a folder, and the question asked of an emulated Python."""
    interpreter = emulated_python(root)
    version = interpreter.name.removeprefix("python")
    site = folder / "site"
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 27, 28)]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:",
         f"--python-version={version}",
         "--implementation=cp", "--platform=manylinux2014_aarch64", *platforms,
         "--target", site, wheel, *others],
        check=True,
    )  # fmt: skip
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(site), "PYTHONHOME": str(root / "usr")}
    answer = ask(["qemu-aarch64-static", "-L", str(root), str(interpreter), "-s"], folder, env)
    return {**answer, "emulated_s": round(time.perf_counter() - start, 1), "installed_mb": size_mb(site)}


def main() -> None:
    """Check what is asked for, and print what was found as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", nargs="?", type=Path)
    parser.add_argument("--python", default="python3", help="the Python of the empty environment")
    parser.add_argument("--emulated", type=Path, metavar="ROOT", help="an unpacked Debian for arm64")
    parser.add_argument(
        "--with",
        dest="others",
        nargs="+",
        default=[],
        metavar="PACKAGE==VERSION",
        help="beside it, if emulated",
    )
    parser.add_argument("--installed", action="store_true", help="ask what is installed beside this Python")
    args = parser.parse_args()
    if args.installed == (args.wheel is not None):
        parser.error("name a wheel, or say --installed")
    with tempfile.TemporaryDirectory(prefix="cir-wheel-") as name:
        folder = Path(name)
        if args.installed:
            answer = ask([sys.executable, "-I"], folder)
        elif args.emulated:
            answer = emulated(args.wheel.resolve(), args.emulated.resolve(), folder, args.others)
        else:
            python = interpreters.find(args.python)
            if python is None:
                sys.exit(f"no {args.python} here starts; name another with --python")
            answer = in_empty_environment(args.wheel.resolve(), python.program, folder)
    print(json.dumps({"wheel": args.wheel and args.wheel.name, **answer}))


if __name__ == "__main__":
    main()
