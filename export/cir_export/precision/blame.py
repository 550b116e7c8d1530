"""Which layers a precision hurts most: each is lowered alone and the encoder's output compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cir_export.precision.fidelity import cosines
from cir_export.precision.graphs import LoweredGraph
from cir_export.precision.held import Held
from cir_export.samples import Samples
from cir_infer.bundle import Bundle
from cir_infer.console.progress import progress_bar
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.inputs.unknown_words import UNSAID
from cir_infer.runtime.graph import Array, Graph
from cir_infer.runtime.onnx import OnnxBackend

__all__ = ["LayerError", "costliest", "layer_errors"]

_SAMPLES = 16


@dataclass(frozen=True)
class LayerError:
    """What one layer alone costs.

    Attributes:
        graph: the graph that it is in.
        layer: its name.
        cosine_worst: the smallest cosine between the encoder's outputs, see `cosines`; minus infinity where
            one is not finite.
    """

    graph: str
    layer: str
    cosine_worst: float

    @property
    def overflows(self) -> bool:
        """Whether the encoder's output is no longer finite."""
        return not np.isfinite(self.cosine_worst)


def layer_errors(
    bundle: Bundle, graphs: Sequence[LoweredGraph], samples: Samples, progress: bool = False
) -> list[LayerError]:
    """The layers of all lowered graphs, the worst first.

    Args:
        bundle: the float32 bundle.
        graphs: its lowered graphs.
        samples: the few images and texts are used that lose most in all of a lowered graph.
        progress: say how far it is.
    """
    backend, held = OnnxBackend("cpu"), Held(bundle)
    judged = {graph.name: _losing_most(backend, bundle, held, graph, samples, progress) for graph in graphs}
    pairs = [(graph, layer) for graph in graphs for layer in graph.layers if layer not in graph.kept]
    found = []
    for graph, layer in progress_bar(pairs, len(pairs), "comparing", "layer", progress):
        feeds, exact = judged[graph.name]
        output = _output(backend.load("lowered", held.runnable(graph.alone(layer))), feeds)
        finite = bool(np.isfinite(output).all())
        worst = float(cosines(exact, output).min()) if finite else -np.inf
        found.append(LayerError(graph.name, layer, worst))
    return sorted(found, key=lambda error: error.cosine_worst)


def costliest(errors: Sequence[LayerError], budget: float) -> list[str]:
    """The layers without which what all others cost, one added to the other, stays within a budget.

    Args:
        errors: of all layers.
        budget: of the worst cosine's distance from 1.
    """
    ascending = sorted(errors, key=lambda error: -error.cosine_worst)
    costs = np.cumsum([1 - error.cosine_worst if not error.overflows else np.inf for error in ascending])
    return [error.layer for error, cost in zip(ascending, costs, strict=True) if not cost <= budget]


def _losing_most(
    backend: OnnxBackend,
    bundle: Bundle,
    held: Held,
    graph: LoweredGraph,
    samples: Samples,
    progress: bool,
) -> tuple[dict[str, Array], Array]:
    """What a graph reads of those samples that lose most in it, as the first few may lose nothing.

    Behind that, what it gives in float32.
    """
    many: Sequence[Any] = samples.texts if graph.name == "text" else samples.images
    original, lowered = (
        backend.load("lowered", held.runnable(model)) for model in (graph.original, graph.judged)
    )
    kept = []
    unit = "text" if graph.name == "text" else "image"
    for one in progress_bar(many, len(many), "comparing", unit, progress):
        feeds = _feeds(bundle, graph.name, [one])
        exact, output = _output(original, feeds), _output(lowered, feeds)
        kept.append(float(cosines(exact, output)[0]) if np.isfinite(output).all() else -np.inf)
    worst = sorted(np.argsort(kept, kind="stable")[:_SAMPLES].tolist())
    feeds = _feeds(bundle, graph.name, [many[number] for number in worst])
    return feeds, _output(original, feeds)


def _feeds(bundle: Bundle, name: str, samples: Sequence[Any]) -> dict[str, Array]:
    manifest = bundle.manifest
    if name == "text":
        assert manifest.text is not None
        ids, lengths = TextReader(bundle.tokenizer(), manifest.text).read(samples, UNSAID)
        return {"tokens": ids, "lengths": lengths}
    return {"image": np.stack([preprocess(image, manifest.image) for image in samples])}


def _output(graph: Graph, feeds: dict[str, Array]) -> Array:
    outputs = graph.run({tensor.name: feeds[tensor.name] for tensor in graph.inputs})
    return next(iter(outputs.values()))
