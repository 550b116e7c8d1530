"""From a model to its ONNX graphs."""

from cir_export.graphs.export import EXPLAIN, export_graphs, forget_graphs

__all__ = ["EXPLAIN", "export_graphs", "forget_graphs"]
