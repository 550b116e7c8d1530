"""What a kept graph depends on, and its file's name, half of which is known before what runs it is there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cir_infer.bundle.model import Model
from cir_infer.runtime.kept.folder import kept_folder
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph

__all__ = ["KEPT", "StoredGraph", "beginning", "graph_cache", "key_of", "most_kept", "path_of"]

_FORMAT = 9
"""Of what is kept, and of what the checks of a bundle's graph refuse: one more when either changes."""

_OFF = ("off", "0", "no")

KEPT = re.compile(r"[a-z]+-[0-9a-f]{16}-?[0-9a-f]{16}\.graph")
"""Names of files, those of earlier versions too."""


class StoredGraph(NamedTuple):
    """A graph as a bundle holds it.

    Attributes:
        digest: its sha256, in hexadecimal.
        size: of it, in bytes; at most that, where weights lie beside it.
        checked_for: what else the bundle's checks of the graph depend on, as plain values.
        read: gives it, checked.
        found: what is kept in a file, of at most so many bytes, as `read_graph` gives it; it may be read
            already.
        beside: whether weights lie beside the bundle's graphs, which runtimes may use where they are.
        tokens: the most that a text may have.
        rows: that it takes at a time, where it is opened for so many only; None for any number.
    """

    digest: str
    size: int
    checked_for: Any
    read: Callable[[], Model]
    found: Callable[[Path, int], GraphFile | str | None] = read_graph
    beside: bool = False
    tokens: int = 512
    rows: int | None = None


def graph_cache() -> Path | None:
    """$CIR_GRAPH_CACHE, or cir-infer/graphs in the user's cache folder; None where it is "off".

    Raises:
        OSError: see `kept_folder`.
    """
    if os.environ.get("CIR_GRAPH_CACHE", "").strip().lower() in _OFF or not hasattr(os, "preadv"):
        return None
    return kept_folder("CIR_GRAPH_CACHE", "graphs")


def most_kept(size: int) -> int:
    """Bytes that the file of a model of so many may have: constants that were folded add to it."""
    return 2 * size + (64 << 20)


def key_of(name: str, stored: StoredGraph, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
    """All that a kept graph depends on, as it comes back from a file.

    Args:
        name: of the graph.
        stored: the graph.
        device: what runs it, one of `device_names.ON_PROCESSOR`.
        made_by: what else, as plain values; see `Keeping.made_by`.
    """
    return {**_known(name, stored, device), "made_by": made_by}


def path_of(folder: Path, name: str, stored: StoredGraph, key: dict[str, Any]) -> Path:
    """The file of a graph."""
    return folder / f"{beginning(name, stored, key['device'])}{_digest(key)}.graph"


def beginning(name: str, stored: StoredGraph, device: str) -> str:
    """How the names of a graph's files begin, whatever version of the device's library made them."""
    return f"{name}-{_digest(_known(name, stored, device))}-"


def _known(name: str, stored: StoredGraph, device: str) -> dict[str, Any]:
    from cir_infer import __version__

    made_of = {
        "format": _FORMAT,
        "name": name,
        "device": device,
        "graph": stored.digest,
        "checked_for": stored.checked_for,
        "cir_infer": __version__,
        "processor": _processor(),
        "rows": stored.rows,
    }
    plain: dict[str, Any] = json.loads(json.dumps(made_of))
    return plain


def _digest(key: dict[str, Any]) -> str:
    """Enough to find a file by. What it was made of is compared whole, once it is open."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _processor() -> list[str]:
    """What it is and what it can do: weights are brought into the order that its instructions want."""
    said: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            field = line.partition(":")[0].strip().lower()
            if field in ("model name", "flags", "features", "cpu implementer", "cpu part", "microcode"):
                said.add(line)
    except OSError:
        said.add(platform.processor())
    digest = hashlib.sha256("\n".join(sorted(said)).encode()).hexdigest()
    return [platform.system(), platform.machine(), digest]
