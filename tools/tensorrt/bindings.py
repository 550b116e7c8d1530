#!/usr/bin/env python3
"""The Python API of a TensorRT version as a table: classes, members, signatures. Needs no GPU.

    pip download --no-deps --only-binary=:all: tensorrt-cu13-bindings==11.4.0.106
    unzip tensorrt_cu13_bindings-*.whl
    python3 tools/tensorrt/bindings.py tensorrt_bindings/tensorrt.so -o tests/runtime/tensorrt/api

The binding is the real one of NVIDIA's wheel (1.3 MB; 8.6.0: the complete wheel, under Python 3.10). It
wants TensorRT's libraries only for a handful of C functions, which empty stand-ins define; nothing of
TensorRT runs. pybind11 writes every signature into its docstrings, so the table is what that version
really offers. The tests of cir_infer.runtime.tensorrt hold our code to these tables. Run it under the
Python that the wheel is for.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CLASSES = (
    "Builder", "BuilderFlag", "DataType", "ExecutionContextAllocationStrategy", "IBuilderConfig",
    "ICudaEngine", "IExecutionContext", "IHostMemory",
    "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile", "IProgressMonitor", "ITensor",
    "ITimingCache", "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser",
    "ParserError", "PreviewFeature", "Runtime", "TensorIOMode",
)  # fmt: skip
"""The part that an application which builds and runs plans can need."""


def stand_ins(binding: Path, folder: Path) -> None:
    """Empty libraries of the names and functions that the binding is linked against."""
    listed = subprocess.run(["readelf", "-d", str(binding)], capture_output=True, text=True, check=True)
    names = re.findall(r"\[(libnv\w+\.so\.\d+)\]", listed.stdout)
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(binding)], capture_output=True, text=True, check=True
    )
    wanted = re.findall(
        r" U (\w*(?:createInfer|NvOnnxParser|nvuffparser|nvcaffeparser|Plugin)\w*)", listed.stdout
    )
    code = "".join(f"void *{name}(void) {{ return 0; }}\n" for name in sorted(set(wanted)))
    for name in names:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-x", "c", "-", f"-Wl,-soname,{name}", "-o", str(folder / name)],
            input=code,
            text=True,
            check=True,
        )


def signatures(doc: str | None, name: str) -> list[str]:
    """The signatures that pybind11 wrote at the top of a docstring; one for each overload."""
    lines = (doc or "").splitlines()
    found = [re.sub(r"^\d+\. ", "", line.strip()) for line in lines]
    return [
        line.replace("tensorrt_bindings.", "").replace("tensorrt.tensorrt.", "").replace("tensorrt.", "")
        for line in found
        if line.startswith(f"{name}(") and "->" in line and "*args" not in line
    ]


def member(name: str, value: Any) -> dict[str, Any] | None:
    """A method with its signatures, or a property with its type."""
    if isinstance(value, property):
        doc = (value.fget.__doc__ or "") if value.fget else ""
        typed = re.search(r"-> ([\w.\[\], ]+)", doc)
        shown = typed[1].replace("tensorrt_bindings.", "").replace("tensorrt.", "") if typed else "object"
        return {"property": shown, "writable": value.fset is not None}
    if callable(value) or isinstance(value, staticmethod):
        function = value.__func__ if isinstance(value, staticmethod) else value
        found = signatures(getattr(function, "__doc__", ""), name)
        return {"method": found} if found else None
    return None


def table(module: Any, version: str) -> dict[str, Any]:
    """See the top of this file."""
    classes: dict[str, Any] = {}
    for name in CLASSES:
        kind = getattr(module, name, None)
        if kind is None:
            continue
        bases = [base.__name__ for base in kind.__mro__[1:-1] if base.__name__ != "pybind11_object"]
        values = sorted(getattr(kind, "__members__", {}))
        nested = {k: v for k, v in vars(kind).items() if isinstance(v, type) and hasattr(v, "__members__")}
        exported = sorted(k for k, v in vars(kind).items() if k not in values and type(v) in nested.values())
        members: dict[str, Any] = {}
        for key in sorted(vars(kind)):
            shown = key in ("__init__", "__len__", "__getitem__", "__bool__") or not key.startswith("_")
            if shown and key not in values and (described := member(key, vars(kind)[key])):
                members[key] = described
        classes[name] = {"bases": bases, "values": values, "members": members}
        if exported:
            classes[name]["exported"] = {"from": sorted(nested), "values": exported}
    return {"version": version, "classes": classes}


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("binding", type=Path, help="tensorrt.so of the wheel")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for VERSION.json")
    args = parser.parse_args()
    folder = os.environ.get("LD_LIBRARY_PATH", "")
    if "cir-tensorrt-" not in folder:
        # The loader reads its path when a process starts, so the work is done by a process of its own.
        with tempfile.TemporaryDirectory(prefix="cir-tensorrt-") as folder:
            stand_ins(args.binding, Path(folder))
            done = subprocess.run([sys.executable, *sys.argv], env={**os.environ, "LD_LIBRARY_PATH": folder})
        sys.exit(done.returncode)
    specification = importlib.util.spec_from_file_location("tensorrt", args.binding.resolve())
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    # The package around the binding holds the version.
    version = re.search(r'__version__ = "([\d.]+)"', args.binding.with_name("__init__.py").read_text())
    assert version is not None
    found = table(module, version[1])
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{found['version']}.json"
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(f"wrote {path}: {len(found['classes'])} classes")


if __name__ == "__main__":
    main()
