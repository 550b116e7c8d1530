"""TensorRT plans: built from the graphs of a bundle for one GPU, cached, checked and run.

Nothing here imports `tensorrt` or PyCUDA until a GPU was found: TensorRT's runtime crashes without one.
`api` is the only module that touches `tensorrt` (with `typed_by_graph` and `typed_by_flags` for what differs
between versions); memory, streams and captures come from `cir_infer.gpu.context`.
"""
