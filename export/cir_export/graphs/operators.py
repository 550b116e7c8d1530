"""The exporter's table of operators, made once a process.

`torch.onnx.export` makes it anew for every graph, which was a quarter of a small export's time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["one_table_of_operators"]

_made: dict[tuple[Any, ...], Any] = {}
_exporting = threading.Lock()


@contextlib.contextmanager
def one_table_of_operators() -> Iterator[None]:
    """Within it, `torch.onnx.export` takes one table for all graphs. Nobody may add operators to it.

    Where a version of PyTorch keeps its table elsewhere, the export goes as it always does.
    """
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

    with _exporting:
        setattr(ONNXRegistry, "from_torchlib", classmethod(from_torchlib))  # noqa: B010
        try:
            yield
        finally:
            setattr(ONNXRegistry, "from_torchlib", original)  # noqa: B010
