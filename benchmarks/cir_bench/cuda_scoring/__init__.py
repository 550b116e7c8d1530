"""Exact scoring on a GPU against what else one could do there: `cir-bench scoring --device cuda`."""

from cir_bench.cuda_scoring.measurement import SIZES, measure, sweep
from cir_bench.cuda_scoring.reach import TARGETS, reached
from cir_bench.cuda_scoring.workload import Case

__all__ = ["SIZES", "TARGETS", "Case", "measure", "reached", "sweep"]
