"""Whether wheels and source distributions hold this tree, and not what it was some time ago.

Names do not say it: every build between two releases has the same version.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tools.cuda import cuda_sources

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cir_infer", "evaluation/cir_eval", "export/cir_export", "benchmarks/cir_bench")
COMPILED = ("kernels", "CMakeLists.txt", "tools/__init__.py", "tools/cuda")
"""What an install from the sources reads beside them."""


def has_fatbins(wheel: Path) -> bool:
    """Whether a wheel holds the CUDA kernels, whichever."""
    with zipfile.ZipFile(wheel) as archive:
        return any(name.endswith(".fatbin") for name in archive.namelist())


def unlike_the_tree(path: Path) -> list[str]:
    """What in a wheel or sdist is not of this tree; nothing if all is.

    Of a wheel: the files of the packages, the scoring kernels, and the fatbins if it has any, which must
    serve every architecture. Of an sdist: the files of the packages and of what compiles them.
    """
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        return _unlike_wheel(
            held.get, {name[name.index("cir_") :]: here for name, here in _tracked(*PACKAGES)}, held
        )
    root = path.name.removesuffix(".tar.gz")
    with tarfile.open(path) as sources:
        held = {member.name: file.read() for member in sources if (file := sources.extractfile(member))}
    return _other(held.get, {f"{root}/{name}": here for name, here in _tracked(*PACKAGES, *COMPILED)})


def _unlike_wheel(
    read: Callable[[str], bytes | None], packages: dict[str, Path], held: dict[str, bytes]
) -> list[str]:
    said = _other(read, packages)
    digest = kernels_hash().encode()
    if not any(digest in held[name] for name in held if name.startswith("cir_infer/scoring/_kernels.")):
        said.append("its scoring kernels were compiled from other sources than those of kernels/score")
    if any(name.endswith(".fatbin") for name in held):
        architectures = cuda_sources.ARCHITECTURES
        said += cuda_sources.unfit(lambda name: read(f"cir_infer/gpu/{name}"), architectures, ptx=True)
    return said


def _other(read: Callable[[str], bytes | None], files: dict[str, Path]) -> list[str]:
    other = [name for name, here in files.items() if read(name) != here.read_bytes()]
    return (
        [f"{len(other)} of {len(files)} files are missing or not those of this tree, {other[0]} one"]
        if other
        else []
    )


def _tracked(*folders: str) -> list[tuple[str, Path]]:
    """What git has of them."""
    listed = ["git", "ls-files", "-z", "--", *folders]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    return [(name, ROOT / name) for name in done.stdout.split("\0") if name]


def kernels_hash() -> str:
    """Of the scoring kernels' sources, as CMakeLists.txt puts it into the module."""
    folder = ROOT / "kernels" / "score"
    paths = sorted(path for end in ("*.cpp", "*.h", "CMakeLists.txt") for path in folder.glob(end))
    paths.append(folder.with_name("threads.h"))
    hashes = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256(hashes.encode()).hexdigest()
