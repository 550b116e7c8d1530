"""The NVIDIA GPU: driver, context, memory, streams, captures, compiled kernels; for scoring and runtime."""
