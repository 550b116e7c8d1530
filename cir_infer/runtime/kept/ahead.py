"""Kept graphs that are read and held against their digests while Python imports what will run them.

Reading and hashing are native code, imports are not, so that the second processor has something to do. Which
file it will be depends on the version of what runs it, which is not imported then: it is guessed, and whoever
comes for a file says which one he means.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cir_infer.runtime.kept.folder import whose
from cir_infer.runtime.kept.graph_file import GraphFile, begin_reading, read_graph
from cir_infer.runtime.kept.names import StoredGraph, beginning, graph_cache, most_kept

__all__ = ["ReadAhead"]


class ReadAhead:
    """Files of graphs that are being read, the smallest first. What nobody takes goes with it.

    Args:
        graphs: those that may be kept, by name.
        device: what will run them.
    """

    def __init__(self, graphs: Mapping[str, StoredGraph], device: str = "cpu") -> None:
        found = _newest(graphs, device)
        names = sorted(found, key=lambda name: graphs[name].size)
        readings = begin_reading([(found[name], most_kept(graphs[name].size)) for name in names])
        self._reading = {name: (found[name], reading) for name, reading in zip(names, readings, strict=True)}

    def take(self, name: str, path: Path, most: int) -> GraphFile | str | None:
        """As `read_graph`, of a file that was guessed sooner. Once."""
        guessed, reading = self._reading.pop(name, (None, None))
        if reading is None or guessed != path:
            if reading is not None:
                reading.cancel()
            return read_graph(path, most)
        return reading.result()


def _newest(graphs: Mapping[str, StoredGraph], device: str) -> dict[str, Path]:
    """Of each graph the file that was used last, where there is one."""
    beginnings = {beginning(name, stored, device): name for name, stored in graphs.items()}
    found: dict[str, tuple[float, Path]] = {}
    try:
        folder = graph_cache()
        if not graphs or folder is None or whose(folder.stat()):
            return {}
        with os.scandir(folder) as entries:
            for entry in entries:
                name = beginnings.get(entry.name[: entry.name.rfind("-") + 1])
                if name is not None and entry.is_file(follow_symlinks=False):
                    used = entry.stat(follow_symlinks=False).st_mtime
                    found[name] = max(found.get(name, (0.0, folder)), (used, folder / entry.name))
    except (OSError, ValueError):  # whoever opens the graph says what it is
        return {}
    return {name: path for name, (_, path) in found.items()}
