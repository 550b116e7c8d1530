"""Optimised graphs on the disk, so that the next process opens a bundle in a fraction of the time.

ONNX Runtime and OpenVINO read a graph, fuse operators and bring weights into the order that the processor's
instructions want. What they make of a graph is kept in a folder of this user's, under a key of everything
that it depends on. It is a shortcut and no more: what is missing, damaged, of something else or not to be
written is said in the log, and the graph is loaded from the bundle.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cir_infer.bundle.model import Model
from cir_infer.errors import shown
from cir_infer.processes.scratch import scratch_folder
from cir_infer.runtime.backend import Backend
from cir_infer.runtime.graph import Graph
from cir_infer.runtime.kept.folder import is_news, not_only_ours
from cir_infer.runtime.kept.graph_file import GraphFile, read_graph, write_graph
from cir_infer.runtime.kept.memory import promised
from cir_infer.runtime.kept.names import KEPT, StoredGraph, graph_cache, key_of, most_kept, path_of
from cir_infer.runtime.kept.weights import Weight
from cir_infer.runtime.samples import SAMPLE_TOKENS, sample_feeds

__all__ = ["Form", "Keeping", "Kernels", "load_kept", "load_model"]

_log = logging.getLogger(__name__)

_LEAST = 2 << 20
"""Bytes of a model from which on it is kept: smaller ones open in some milliseconds."""
_MOST = 1 << 30
"""Bytes of a model that is kept: protocol buffers end at twice that."""
_MOST_OF_ALL = 4 << 30
"""Bytes of the folder; what was used longest ago goes."""
_MEMORY = 6
"""Sizes of a model that keeping it takes beside the graph that is open, measured: 4."""
_SCRATCH = ".optimised-"
_LEFT = 3600
"""Seconds after which scratch is of a process that ended in the middle: making a graph takes some."""


Form = tuple[bytes, list[Weight]]
"""What is kept of a graph: its description and its weights."""


class Keeping(Backend, Protocol):
    """A backend on the processor, of whose graphs something can be kept from which they open sooner."""

    @property
    def reads_in_place(self) -> bool:
        """Whether weights beside a graph are used where they lie, so that a copy of them gains nothing."""
        ...

    def made_by(self) -> dict[str, Any]:
        """What a kept graph depends on beside the graph: versions and settings, as JSON gives them back."""
        ...

    def form(self, name: str, model: Model, graph: Graph, scratch: Path) -> Form:
        """What is to be kept of a graph that this backend has loaded.

        Args:
            name: of the graph.
            model: of which it was loaded.
            graph: what `load` gave.
            scratch: a folder for files that are gone afterwards.

        Raises:
            CirError, OSError, ValueError: nothing can be.
        """
        ...

    def reopen(self, name: str, found: GraphFile) -> Graph:
        """A graph from what was kept of it, whose memory it may go on reading.

        Raises:
            CirError, ValueError, TypeError, KeyError: it cannot be used.
        """
        ...


class Kernels(Protocol):
    """What runs graphs of one kind by kernels of ours."""

    def load(self, model: Model) -> tuple[Graph, Form] | None:
        """A graph, and what is to be kept of it; None where it is of another kind."""
        ...

    def reopen(self, found: GraphFile) -> Graph | None:
        """A graph from what was kept of it; None where that is another kind's."""
        ...


def load_kept(
    backend: Keeping,
    name: str,
    stored: StoredGraph,
    kernels: Kernels | None = None,
    least: int = _LEAST,
) -> Graph:
    """A graph, from what is kept where that can be used; else from the bundle, and kept for the next time.

    What is kept is opened in place of the bundle's member, which is not read then.

    Args:
        backend: runs it on the processor.
        name: of the graph.
        stored: the graph.
        kernels: what runs some graphs better than the backend.
        least: bytes of a graph that is kept.

    Raises:
        BundleError: the graph in the bundle cannot be used.
    """
    if not least <= stored.size or (stored.beside and backend.reads_in_place):
        return load_model(backend, name, stored.read(), kernels)
    folder = _folder()
    if folder is None:
        return load_model(backend, name, stored.read(), kernels)
    key = key_of(name, stored, backend.device, backend.made_by())
    path = path_of(folder, name, stored, key)
    reopen = partial(_reopened, backend, name, kernels)
    opened = _found(name, stored, path, key, reopen)
    if opened is not None:
        return opened
    model = stored.read()
    better = None if kernels is None else kernels.load(model)
    if better is not None:
        graph, form = better
        write = partial(_write_form, key, form)
    else:
        graph = backend.load(name, model)
        write = partial(_write_made, backend, name, model, graph, key)
    if not least <= model.size <= _MOST:
        return graph
    try:
        _keep(name, model.size, graph, min(SAMPLE_TOKENS, stored.tokens), path, write, reopen)
    except OSError as error:
        _say_once(folder, error)
    except Exception as error:  # what is only a shortcut may fail in any way
        _log.warning("the optimised %s graph is not kept, opening it stays slow: %s", name, shown(error))
    return graph


def load_model(backend: Backend, name: str, model: Model, kernels: Kernels | None) -> Graph:
    """A graph by kernels of ours where they take it, else by the backend; nothing is kept.

    Raises:
        BundleError, DeviceError: see `Backend.load`.
    """
    better = None if kernels is None else kernels.load(model)
    return backend.load(name, model) if better is None else better[0]


def _folder() -> Path | None:
    """Where graphs are kept; None where that is nowhere, or is said to be of no use."""
    folder = None
    try:
        folder = graph_cache()
        others = None if folder is None else not_only_ours(folder)
    except (OSError, ValueError) as error:  # `ValueError` is of a path of odd bytes
        _say_once(folder, error)
        return None
    if others is not None:
        _say_once(folder, PermissionError(errno.EPERM, others))
        return None
    return folder


def _say_once(folder: Path | None, error: OSError | ValueError) -> None:
    """Say why nothing is kept: once, for all graphs of a bundle meet the same."""
    reason = getattr(error, "strerror", None) or shown(error)
    number = getattr(error, "errno", None)
    if not is_news(folder or reason, number):
        return
    where, remedy = "", ""
    if folder is not None and number != errno.ENOMEM:
        where, remedy = f" in {shown(folder)}", "; set CIR_GRAPH_CACHE to another folder, or to off"
    _log.warning("graphs are not kept%s, opening a bundle stays slow: %s%s", where, reason, remedy)


def _found(
    name: str, stored: StoredGraph, path: Path, key: dict[str, Any], reopen: Callable[[GraphFile], Graph]
) -> Graph | None:
    try:
        found = stored.found(path, most_kept(stored.size))
        if found is None:
            return None
        if isinstance(found, str):
            raise ValueError(found)
        if found.key != key:
            raise ValueError("it was made of something else")
        graph = reopen(found)
    except Exception as error:  # as in `load_kept`
        _log.warning("the kept %s graph %s is made again: %s", name, path, shown(error))
        return None
    with suppress(OSError):
        os.utime(path)  # used last, goes last
    return graph


def _reopened(backend: Keeping, name: str, kernels: Kernels | None, found: GraphFile) -> Graph:
    graph = None if kernels is None else kernels.reopen(found)
    return backend.reopen(name, found) if graph is None else graph


def _keep(
    name: str,
    size: int,
    graph: Graph,
    tokens: int,
    path: Path,
    write: Callable[[Path], None],
    reopen: Callable[[GraphFile], Graph],
) -> None:
    """Write what was made of a graph, once it gives the same numbers.

    Nothing is kept where it would take memory that others need: a graph that opened must not be what ends a
    process on a small machine.

    Raises:
        CirError, OSError, ValueError: it cannot be written, or does not.
    """
    with promised(_MEMORY * size):
        _make_room(path.parent, 2 * size)
        with scratch_folder(_SCRATCH, path.parent) as folder:
            trial = folder / "trial.graph"
            write(trial)
            found = read_graph(trial, most_kept(size))
            if not isinstance(found, GraphFile):
                raise ValueError(f"what was written cannot be read: {found}")
            feeds = sample_feeds(graph.inputs, 1, tokens)
            again = reopen(found).run(feeds)
            for output, value in graph.run(feeds).items():
                if not np.array_equal(value, again[output], equal_nan=True):
                    raise ValueError(f"it gives another {output}")
            trial.replace(path)
    _log.info("the optimised %s graph is kept in %s", name, path)


def _write_form(key: dict[str, Any], form: Form, path: Path) -> None:
    write_graph(path, key, *form)


def _write_made(
    backend: Keeping, name: str, model: Model, graph: Graph, key: dict[str, Any], path: Path
) -> None:
    write_graph(path, key, *backend.form(name, model, graph, path.parent))


def _make_room(folder: Path, wanted: int) -> None:
    """Remove what was used longest ago until as much fits in, and what processes left that were killed.

    Nothing else is touched: the folder may be any that a user names.

    Raises:
        OSError: the disk has no room.
    """
    kept = []
    for file in folder.iterdir():
        try:
            status = file.lstat()
        except OSError:  # another process removed it
            continue
        if KEPT.fullmatch(file.name) and not stat.S_ISDIR(status.st_mode):
            kept.append((status.st_mtime, status.st_size, file))
        elif file.name.startswith(_SCRATCH) and status.st_mtime < time.time() - _LEFT:
            shutil.rmtree(file, ignore_errors=True)
    total = sum(size for _, size, _ in kept)
    for _, size, file in sorted(kept, key=lambda entry: entry[0]):
        if total + wanted <= _MOST_OF_ALL:
            break
        file.unlink(missing_ok=True)
        total -= size
    free = shutil.disk_usage(folder).free
    if free < 2 * wanted:
        raise OSError(errno.ENOSPC, f"{free >> 20:,} MiB are left there, and {2 * wanted >> 20:,} are wanted")
