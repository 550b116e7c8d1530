"""The recurrent text encoder as one persistent CUDA kernel; see kernels/recurrent/cuda/README.md."""
