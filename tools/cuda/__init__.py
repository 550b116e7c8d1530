"""The CUDA kernels: compiled, held to tables, predicted, and checked with and without a GPU."""
