"""From a model to its ONNX graphs."""

from cir_export.graphs.export import export_graphs

__all__ = ["export_graphs"]
