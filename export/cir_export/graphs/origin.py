"""Where in the user's model a node comes from, read from what the exporter notes beside it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence

from onnx import NodeProto

__all__ = ["module_path", "origin"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
_OURS = re.compile(r"^(model|module)(\.|$)")
"""What this package wraps a model in before it exports it."""


def origin(node: NodeProto) -> str:
    """` in trunk.0 (Upsample)`, or nothing where the exporter left no notes."""
    notes = {entry.key: entry.value for entry in node.metadata_props}
    scopes, classes = (_listed(notes, key) for key in (_SCOPES, _CLASSES))
    if len(scopes) < 2 or len(classes) != len(scopes):
        return ""
    return _said(scopes[-2], classes[-2])


def module_path(stack: Mapping[str, Sequence[object]]) -> str:
    """The same from `nn_module_stack` of a node of an exported program."""
    if not stack:
        return ""
    path, kind = list(stack.values())[-1][:2]
    return _said(str(path), kind if isinstance(kind, str) else getattr(kind, "__name__", ""))


def _said(path: str, kind: str) -> str:
    while _OURS.match(path):
        path = _OURS.sub("", path, count=1)
    name = kind.rpartition(".")[2]
    return f" in {path} ({name})" if path else ""


def _listed(notes: Mapping[str, str], key: str) -> list[str]:
    try:
        value = ast.literal_eval(notes.get(key, "[]"))
    except (ValueError, SyntaxError):
        return []
    return [str(item) for item in value] if isinstance(value, list) else []
