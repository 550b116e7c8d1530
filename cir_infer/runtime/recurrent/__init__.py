"""Recurrent text encoders by kernels of ours: one persistent launch on CUDA, vectors on the processor."""
