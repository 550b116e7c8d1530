"""What TensorRT builds plans of: every system in a size that a test can afford, and the committed model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cir_export.checkpoints import load_trained
from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel
from cir_export.precision.graphs import PrecisionName, lower_graphs
from cir_export.preprocessing import plain_resize, word_text
from cir_export.verification import Samples, draw_samples
from cir_infer.bundle import Bundle
from tests.export.systems.examples import CONFIGS, SIZE, TOKENIZER, WORDS, example, side

ROOT = Path(__file__).parents[2]
COMMITTED = "artemis-scenes"
Precision = PrecisionName | Literal["float32"]
_ENCODERS = {
    "bigru": {"encoder": "bigru", "vocabulary_size": len(WORDS), "word_dim": 10},
    "lstm": {"encoder": "lstm", "vocabulary_size": len(WORDS), "word_dim": 10, "hidden": 12},
}
_TRUNKS = {
    f"artemis {trunk} {encoder}": {
        "system": "artemis",
        "embedding_dim": 24,
        "image": {"trunk": trunk, "size": 64, "pooling": "gem"},
        "text": text,
    }
    for trunk, encoder, text in (
        ("resnet18", "lstm", _ENCODERS["lstm"]),
        ("resnet50", "bigru", _ENCODERS["bigru"]),
    )
}
_TERMS = {
    name: {**CONFIGS["tirg"], "system": name, "text": _ENCODERS["bigru"]}
    for name in ("artemis", "is-only", "em-only", "image-only", "text-only", "late-fusion")
}
SYSTEMS = {**_TRUNKS, **_TERMS, **CONFIGS}


def bundle_of(name: str, path: Path) -> Bundle:
    """One of `SYSTEMS`, or `COMMITTED`, exported in float32."""
    if name == COMMITTED:
        trained = load_trained([ROOT / "models" / name / "model.pt"])
    else:
        size = 64 if name in _TRUNKS else side(name) if name in CONFIGS else SIZE
        trained = TrainedModel(example(name, SYSTEMS), TOKENIZER, plain_resize(size), word_text(60))
    drawn = draw_samples(trained.image, trained.text, trained.tokenizer)
    export_bundle(trained, path, Samples(drawn.images[:4], drawn.texts[:4], drawn.source))
    return Bundle(path)


def graphs_of(bundle: Bundle, precision: Precision) -> dict[str, bytes]:
    """A bundle's graphs in a precision, as devices with TensorRT get them."""
    if precision == "float32":
        return {name: bundle.graph(name).whole() for name in bundle.manifest.graphs}
    pixels = bundle.manifest.image
    assert pixels is not None

    def images() -> Iterator[Any]:
        shape = (4, pixels.height, pixels.width, 3)
        yield np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    lowered = lower_graphs(bundle, precision, "tensorrt", (), images if precision == "int8" else lambda: ())
    return {graph.name: graph.model.SerializeToString() for graph in lowered}
