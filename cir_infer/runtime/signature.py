"""What goes into each graph of a bundle and what comes out: the table of docs/architecture.md, enforced."""

from __future__ import annotations

from typing import Any

import numpy as np

from cir_infer.bundle.manifest import FeatureInput, Manifest
from cir_infer.errors import BundleError, shown
from cir_infer.runtime.graph import Graph, Tensor

__all__ = ["check_signature"]

_ANY = -1
"""An axis of whatever length; None is an axis that must be dynamic, a number may be dynamic or that."""


def check_signature(name: str, graph: Graph, manifest: Manifest) -> None:
    """Raise `BundleError` unless a graph's inputs and outputs are those of its kind.

    Inputs may be fewer, but not none: a text encoder need not look at its tokens, and what nothing reads some
    backends leave out.
    """
    inputs, outputs = _expected(name, manifest)
    for found in graph.inputs:
        _check(name, "input", found, inputs)
    for found in graph.outputs:
        _check(name, "output", found, outputs)
    missing = sorted(set(outputs) - {tensor.name for tensor in graph.outputs})
    if missing:
        raise BundleError(f"the {name} graph has no {missing}; export the model again")
    if not graph.inputs:
        raise BundleError(
            f"the {name} graph reads nothing; expected {sorted(inputs)}, of which it may leave out some, so "
            "export the model again"
        )


Shapes = dict[str, tuple[Any, tuple[int | None, ...] | None]]


def _expected(name: str, manifest: Manifest) -> tuple[Shapes, Shapes]:
    image = manifest.image
    terms = (None, len(manifest.terms), manifest.embedding_dim)
    if name == "text":
        tokens: Shapes = {"tokens": (np.int32, (None, None)), "lengths": (np.int32, (None,))}
        return tokens, {"text": (np.float32, None)}
    if name == "compose":
        outputs: Shapes = {"numerators": (np.float32, terms)}
        if manifest.weighted:
            outputs["weights"] = (np.float32, terms)
        return {"reference": (np.float32, None), "text": (np.float32, None)}, outputs
    pictures: Shapes
    if isinstance(image, FeatureInput):
        pictures = {"image": (np.float32, (None, image.size))}
    else:
        pictures = {"image": (np.uint8, (None, image.height, image.width, 3))}
    if name == "reference":
        return pictures, {"reference": (np.float32, None)}
    if name == "explain" and manifest.explain is not None:
        grid = (manifest.explain.height, manifest.explain.width)
        return pictures, {
            "embedding": (np.float32, (None, manifest.embedding_dim)),
            "parts": (np.float32, (None, *grid, manifest.embedding_dim)),
            "constant": (np.float32, (None, manifest.embedding_dim)),
        }
    return pictures, {"embedding": (np.float32, (None, *manifest.row_shape))}


def _check(graph: str, side: str, found: Tensor, expected: Shapes) -> None:
    if found.name not in expected:
        raise BundleError(
            f"the {graph} graph has an {side} {shown(found.name)}; expected only {sorted(expected)}"
        )
    dtype, shape = expected[found.name]
    if shape is None:
        shape = (None, *[_ANY] * (len(found.shape) - 1))
    fits = len(shape) == len(found.shape) and all(
        wanted == _ANY or length is None or length == wanted
        for wanted, length in zip(shape, found.shape, strict=True)
    )
    if found.dtype != dtype or not fits:
        raise BundleError(
            f"the {graph} graph's {side} {shown(found.name)} is {found.dtype} {_shown(found.shape)}; "
            f"expected {np.dtype(dtype)} {_shown(shape)}"
        )


def _shown(shape: tuple[int | None, ...]) -> str:
    return f"({', '.join('n' if length in (None, _ANY) else str(length) for length in shape)})"
