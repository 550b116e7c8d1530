"""Exact top-k on an NVIDIA GPU. See kernels/score/cuda/README.md for how and why."""

from cir_infer.scoring.cuda.scorer import CudaScorer, CudaStatistics

__all__ = ["CudaScorer", "CudaStatistics"]
