"""Type stubs of a TensorRT version, from the table of its real API."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

API = Path(__file__).parent / "api"
VERSIONS = tuple(sorted(path.stem for path in API.glob("*.json")))

_TYPES = {
    "buffer": "bytes",
    "typing_extensions.Buffer": "bytes",
    "typing.SupportsInt": "int",
    "Dims": "tuple[int, ...]",
    "nvonnxparser::IParserError": "ParserError",
    "nvinfer1::TensorIOMode": "TensorIOMode",
    "nvinfer1::ILogger::Severity": "ILogger.Severity",
    "ILogger.Severity": "ILogger.Severity",
    "tuple": "tuple[int, ...]",
    "list": "list[int]",
}
_PLAIN = {"int", "bool", "str", "float", "None"}


def table_of(version: str) -> dict[str, Any]:
    return json.loads((API / f"{version}.json").read_text())["classes"]


def _type(written: str, classes: dict[str, Any]) -> str:
    written = written.strip()
    if written in _TYPES:
        return _TYPES[written]
    inner = re.fullmatch(r"[Ll]ist\[(.+)\]", written)
    if inner:
        return f"list[{_type(inner[1], classes)}]"
    return written if written in _PLAIN or written in classes else "Any"


def _signature(written: str, classes: dict[str, Any]) -> str:
    name, rest = written.split("(", 1)
    inside, result = rest.rsplit(") ->", 1)
    parts, seen = [], False
    for part in re.split(r",\s*(?=\w+:)", inside):
        parameter, _, kind = part.partition(":")
        kind, default, _ = kind.partition(" = ")
        shown = "self" if parameter.strip() == "self" else f"{parameter.strip()}: {_type(kind, classes)}"
        seen = seen or bool(default)
        optional = " | None = ..." if part.endswith("= None") else " = ..."
        parts.append(shown + (optional if seen else ""))
    return f"def {name}({', '.join(parts)}) -> {_type(result, classes)}: ..."


def stub_of(version: str) -> str:
    """The text of tensorrt/__init__.pyi."""
    classes = table_of(version)
    lines = ["from typing import Any, overload", "__version__: str"]
    for name, described in classes.items():
        bases = [base for base in described["bases"] if base in classes]
        lines.append(f"class {name}({', '.join(bases)}):" if bases else f"class {name}:")
        lines += [f"    {value}: {name}" for value in described["values"]]
        if described["values"]:
            lines.append("    def __int__(self) -> int: ...")
        for nested in described.get("exported", {}).get("from", []):
            lines.append(f"    class {nested}: ...")
            lines += [f"    {value}: {name}.{nested}" for value in described["exported"]["values"]]
        if name == "IHostMemory":
            lines.append("    def __buffer__(self, flags: int) -> memoryview: ...")
        for member, what in described["members"].items():
            if "property" in what:
                kind = _type(what["property"], classes)
                lines += ["    @property", f"    def {member}(self) -> {kind}: ..."]
                if what["writable"]:
                    lines += [f"    @{member}.setter", f"    def {member}(self, value: {kind}) -> None: ..."]
                continue
            signatures = list(dict.fromkeys(_signature(written, classes) for written in what["method"]))
            for signature in signatures:
                lines += ["    @overload"] if len(signatures) > 1 else []
                lines.append(f"    {signature}")
        lines.append("    pass")
    return "\n".join(lines) + "\n"
