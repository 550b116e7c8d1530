"""Holds an exported bundle against the PyTorch model that it came from."""

from cir_export.samples import Samples, draw_samples
from cir_export.verification.parity import Answers, Check, answers_of, compare
from cir_export.verification.sums import compare_sums, explain_of, why_unexplained

__all__ = [
    "Answers",
    "Check",
    "Samples",
    "answers_of",
    "compare",
    "compare_sums",
    "draw_samples",
    "explain_of",
    "why_unexplained",
]
