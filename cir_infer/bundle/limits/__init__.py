"""What a graph of a bundle may take, known before ONNX Runtime sees it.

A graph of standard operators is no program, and yet computes: a few bytes name a tensor of gigabytes or a
product of hours. `check_graph` refuses what a bundle never needs (control flow, functions, chance, sequences,
texts), and follows the shapes of all tensors from the inputs' to the outputs' for one item and for many:
memory has a stated limit an item, and work one in proportion to the graph's bytes.
"""

from cir_infer.bundle.limits.check import check_graph
from cir_infer.bundle.limits.operators import OPERATORS

__all__ = ["OPERATORS", "check_graph"]
