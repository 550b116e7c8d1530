"""A plan on disk: a header that says what it was built for, and a digest that is checked before use.

    8 bytes   CIRPLAN1
    32 bytes  sha256 of everything that follows
    4 bytes   length of the header, little-endian
    header    JSON: {"key": {...}, "built": {...}}
    plan      what TensorRT serialised; empty where the graph does better elsewhere

TensorRT may crash on a damaged plan or one of another version, so such a plan must never reach it.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cir_infer.errors import shown
from cir_infer.foreign import read_json
from cir_infer.runtime.kept.folder import whose

__all__ = ["PlanFile", "PlanKey", "read_plan"]

_MAGIC = b"CIRPLAN1"
_DIGEST = 32
_MOST_HEADER = 1 << 20


@dataclass(frozen=True)
class PlanKey:
    """All that a plan depends on. Plans of equal keys may stand in for one another, others never.

    Attributes:
        graph: sha256 of the ONNX model.
        tensorrt: version of TensorRT.
        compute_capability: e.g. "8.7".
        gpu: the GPU's name.
        precision: the bundle's.
        limits: see `Limits`.
        flags: how the plan is built: typing, TF32, host code.
        l4t: release of Jetson's system, e.g. "36.4.0"; None elsewhere.
    """

    graph: str
    tensorrt: str
    compute_capability: str
    gpu: str
    precision: str
    limits: dict[str, int]
    flags: tuple[str, ...]
    l4t: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "flags": list(self.flags)}

    @property
    def digest(self) -> str:
        """sha256 over the canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def difference(self, other: dict[str, Any]) -> str:
        """Where another key differs, for people."""
        mine = self.to_json()
        return ", ".join(
            f"{field} {shown(other.get(field))} instead of {shown(value)}"
            for field, value in mine.items()
            if other.get(field) != value
        )


@dataclass(frozen=True)
class PlanFile:
    """A plan with its manifest.

    Attributes:
        key: as plain values.
        built: by whom, in how many seconds, with what workspace; `parity` with ONNX Runtime; and `kernel`
            and `placement` of a text graph, where these were a choice.
        plan: what TensorRT serialised; empty if the placement is elsewhere.
    """

    key: dict[str, Any]
    built: dict[str, Any]
    plan: bytes

    def to_bytes(self) -> bytes:
        """The file's content."""
        header = json.dumps({"key": self.key, "built": self.built}, sort_keys=True).encode()
        sealed = len(header).to_bytes(4, "little") + header + self.plan
        return _MAGIC + hashlib.sha256(sealed).digest() + sealed


def read_plan(path: Path) -> PlanFile | str | None:
    """A plan file; None where there is none; the reason, in words, why it cannot be used."""
    try:
        with path.open("rb") as file:
            # The folder is looked at as well, but others may have written to it before that was put right.
            if others := whose(os.fstat(file.fileno())):
                return others
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    if data[: len(_MAGIC)] != _MAGIC:
        return "it is no plan of this version of cir-infer"
    sealed = data[len(_MAGIC) + _DIGEST :]
    if hashlib.sha256(sealed).digest() != data[len(_MAGIC) : len(_MAGIC) + _DIGEST]:
        return "it is damaged or was cut short"
    length = int.from_bytes(sealed[:4], "little")
    if length > min(_MOST_HEADER, len(sealed) - 4):
        return "its header is longer than the file"
    try:
        header = read_json(sealed[4 : 4 + length])
        key, built = header["key"], header["built"]
    except (ValueError, KeyError, TypeError):
        return "its header cannot be read"
    if not isinstance(key, dict) or not isinstance(built, dict):
        return "its header cannot be read"
    return PlanFile(key, built, sealed[4 + length :])
