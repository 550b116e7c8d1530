"""What the exporter looks up anew for every graph, looked up once.

`torch.onnx.export` makes its table of operators for every graph, a quarter of a small export's time, and
`torch.export` asks for all composite operators once for each namespace, twice, a third of a small graph's.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["one_table_of_operators"]

_made: dict[tuple[Any, ...], Any] = {}
_exporting = threading.Lock()


@contextlib.contextmanager
def one_table_of_operators() -> Iterator[None]:
    """Within it, `torch.onnx.export` takes one table for all graphs. Nobody may add operators to it.

    Where a version of PyTorch keeps its table elsewhere, the export goes as it always does.
    """
    with _exporting, _one_registry(), _one_look():
        yield


@contextlib.contextmanager
def _one_registry() -> Iterator[None]:
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        original = vars(ONNXRegistry)["from_torchlib"]
    except (ImportError, KeyError):
        yield
        return

    def from_torchlib(cls: type, *args: Any, **options: Any) -> Any:
        key = (cls, *args, *options.items())
        if key not in _made:
            _made[key] = original.__get__(None, cls)(*args, **options)
        return _made[key]

    with _in_its_place(ONNXRegistry, "from_torchlib", classmethod(from_torchlib)):
        yield


@contextlib.contextmanager
def _one_look() -> Iterator[None]:
    """All operators that decompose are made known to Python once in this block, not for each namespace."""
    try:
        from torch._export import utils

        original: Callable[[], None] = vars(utils)["_materialize_cpp_cia_ops"]
    except (ImportError, KeyError):
        yield
        return
    with _in_its_place(utils, "_materialize_cpp_cia_ops", functools.cache(lambda: original())):
        yield


@contextlib.contextmanager
def _in_its_place(owner: Any, name: str, other: object) -> Iterator[None]:
    original = vars(owner)[name]
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, original)
