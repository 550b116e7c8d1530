"""Data sets, protocols, encoding and metrics, on which training, precision gates and benchmarks stand."""
