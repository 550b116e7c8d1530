"""cir-infer: composed image retrieval (reference image + modifier text) on the edge.

    from cir_infer import Searcher
    hits = Searcher("artemis.cir").query("dress.jpg", "is cream in color", k=10)

Heavy modules (onnxruntime, tokenizers, Pillow) load on first use, not at import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cir_infer.errors import CirError

if TYPE_CHECKING:
    from cir_infer.engine import Engine
    from cir_infer.explaining import Explanation
    from cir_infer.gallery import Gallery
    from cir_infer.hits import Hit, Hits
    from cir_infer.searcher import Searcher
    from cir_infer.vector_searcher import VectorSearcher

__version__ = "0.1.0"

__all__ = [
    "CirError",
    "Engine",
    "Explanation",
    "Gallery",
    "Hit",
    "Hits",
    "Searcher",
    "VectorSearcher",
    "__version__",
]

_HOMES = {
    "Engine": "cir_infer.engine",
    "Explanation": "cir_infer.explaining",
    "Gallery": "cir_infer.gallery",
    "Hit": "cir_infer.hits",
    "Hits": "cir_infer.hits",
    "Searcher": "cir_infer.searcher",
    "VectorSearcher": "cir_infer.vector_searcher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cir_infer' has no attribute {name!r}")
    from importlib import import_module

    from cir_infer.processes.collector import collector_paused

    with collector_paused():
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
