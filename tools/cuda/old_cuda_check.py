#!/usr/bin/env python3
"""The CUDA kernels through older compilers than the nvcc at hand: `make old-cuda-check`. Needs no GPU.

A Jetson compiles them with the CUDA of its JetPack, and no nvcc of that age can be had as a package. NVRTC,
the same compiler as a library, can (45 MB each with its headers, downloaded once). Fails where a kernel does
not compile for an architecture that the version knows, spills registers or uses local memory.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import zipfile
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "nvrtc"
VERSIONS = {"12.2.140": "JetPack 6.0", "12.6.77": "JetPack 6.1 and 6.2"}
PACKAGES = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12", "nvidia-cuda-nvcc-cu12")
NVCC_VERSIONS = {"12.6.77": "12.6.85"}
"""The wheels of one CUDA have different last numbers."""
INTEGERS = "".join(
    f"typedef {'unsigned ' * unsigned}{kind} {'u' * unsigned}int{bits}_t;\n"
    f"namespace std {{ using ::{'u' * unsigned}int{bits}_t; }}\n"
    for bits, kind in ((8, "char"), (16, "short"), (32, "int"), (64, "long long"))
    for unsigned in (True, False)
).replace("typedef char", "typedef signed char") + (
    "typedef unsigned long uintptr_t;\nnamespace std { using ::uintptr_t; }\n"
)
STANDARD_HEADERS = {
    "cstdint": INTEGERS,
    "cmath": "#define NAN __int_as_float(0x7fc00000)\n"
    "#define HUGE_VAL __longlong_as_double(0x7ff0000000000000)\n",
}
"""What the kernels take of the standard library, which NVRTC lacks; the functions of <cmath> it knows."""

sys.path.insert(0, str(ROOT))

from tools.cuda import build_cuda, cuda_sources  # noqa: E402
from tools.packages.wheels import download  # noqa: E402


def unpack(version: str) -> Path:
    """The library and the headers of one CUDA."""
    folder = BUILD / version
    for package in PACKAGES:
        part = package.removeprefix("nvidia-").removesuffix("-cu12").replace("-", "_")
        if not (folder / "nvidia" / part).exists():
            exact = NVCC_VERSIONS.get(version, version) if "nvcc" in package else version
            half = folder / f"{part}.part"  # or what is left of an interrupted run would count as unpacked
            with zipfile.ZipFile(download(folder, f"{package}=={exact}")) as archive:
                archive.extractall(half)
            (folder / "nvidia").mkdir(exist_ok=True)
            (half / "nvidia" / part).replace(folder / "nvidia" / part)
            shutil.rmtree(half)
    return folder / "nvidia"


def compile_kernels(
    library: ctypes.CDLL, home: Path, kernels: cuda_sources.Kernels, architecture: int
) -> str:
    """What the compiler and the assembler say; exits where they fail."""
    program, size = c_void_p(), c_size_t()
    source = kernels.folder / kernels.source
    count = len(STANDARD_HEADERS)
    headers = (c_char_p * count)(*(header.encode() for header in STANDARD_HEADERS.values()))
    names = (c_char_p * count)(*(name.encode() for name in STANDARD_HEADERS))
    text = c_char_p(source.read_bytes())
    ask(
        library,
        "nvrtcCreateProgram",
        byref(program),
        text,
        c_char_p(b"kernels.cu"),
        c_int(count),
        headers,
        names,
    )
    folders = [kernels.folder, *(header.parent for header in kernels.shared)]
    folders += [home / "cuda_runtime" / "include", home / "cuda_nvcc" / "include"]
    options = [f"--gpu-architecture=sm_{architecture}", "--std=c++17", "--ptxas-options=-v", "-w"]
    options += [f"-I{folder}" for folder in folders]
    given = (c_char_p * len(options))(*(option.encode() for option in options))
    status = library.nvrtcCompileProgram(program, c_int(len(options)), given)
    ask(library, "nvrtcGetProgramLogSize", program, byref(size))
    log = ctypes.create_string_buffer(size.value)
    ask(library, "nvrtcGetProgramLog", program, log)
    said = log.value.decode(errors="replace")
    if status != 0:
        sys.exit(f"error: {source.name} does not compile for sm_{architecture}\n{said[-4000:]}")
    ask(library, "nvrtcDestroyProgram", byref(program))
    return said


def ask(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    """A call that must succeed."""
    status = getattr(library, function)(*arguments)
    if status != 0:
        sys.exit(f"error: {function} answered {status}")


def check(version: str) -> None:
    """Every kernel for every architecture of ours that one CUDA knows."""
    home = unpack(version)
    library = ctypes.CDLL(str(next((home / "cuda_nvrtc" / "lib").glob("libnvrtc.so*"))))
    count = c_int()
    ask(library, "nvrtcGetNumSupportedArchs", byref(count))
    listed = (c_int * count.value)()
    ask(library, "nvrtcGetSupportedArchs", listed)
    known = [architecture for architecture in cuda_sources.ARCHITECTURES if architecture in set(listed)]
    wrong, most, compiled = [], 0, 0
    for kernels in cuda_sources.SETS.values():
        for architecture in known:
            found = build_cuda.resources(compile_kernels(library, home, kernels, architecture))
            for kernel, (use,) in ((kernel, uses.values()) for kernel, uses in found.items()):
                compiled, most = compiled + 1, max(most, use["registers"])
                if use["spill_bytes"] or use["stack_bytes"]:
                    wrong.append(f"{kernel} for sm_{architecture} uses local memory")
    if wrong or not compiled:
        sys.exit("error: " + "\n       ".join(wrong or ["nothing was compiled"]))
    print(
        f"CUDA {version} ({VERSIONS[version]}): {compiled} kernels for {build_cuda.named(known)}, "
        f"at most {most} registers, no local memory",
        flush=True,
    )


def main() -> None:
    """See the top of this file."""
    if len(sys.argv) > 1:
        check(sys.argv[1])
        return
    for version in VERSIONS:
        # The library keeps state, and its name is the same in every version.
        done = subprocess.run([sys.executable, __file__, version])
        if done.returncode != 0:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
