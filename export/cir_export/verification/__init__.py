"""Holds an exported bundle against the PyTorch model that it came from."""

from cir_export.samples import Samples, draw_samples
from cir_export.verification.parity import Check, compare

__all__ = ["Check", "Samples", "compare", "draw_samples"]
