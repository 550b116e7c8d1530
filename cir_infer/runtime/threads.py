"""How many threads run a graph on the processor, whichever library does."""

from __future__ import annotations

import os

from cir_infer.processes.cpus import available_cores, available_cpus

__all__ = ["threads_for"]

_SMALL = 32 << 20
"""Bytes of a text or compose graph up to which one thread runs it."""


def threads_for(name: str, size: int, threads: int | None) -> int | None:
    """Threads inside an operator; None leaves them to the library, which counts the machine's cores.

    One thread for a graph whose operators take less than waking a second one. Measured on two cores with a
    BiGRU of 8 MB: one text takes as long on one thread as on two, and the answers of a refined hit lose a
    tail of 25 ms, in which a sleeping thread was waited for.

    Args:
        name: of the graph.
        size: of its model, in bytes.
        threads: what the caller asked for.
    """
    if name in ("text", "compose") and size <= _SMALL:
        return 1
    if threads is not None:
        return threads
    # Left to themselves libraries count the processors of the machine, not those of a container. And ONNX
    # Runtime binds each thread to a core then: where the caller's own runs on it, an encoder takes as long as
    # on one core.
    cores = available_cores()
    if cores is not None:
        return cores
    available = available_cpus()
    return available if available < (os.cpu_count() or 1) else None
