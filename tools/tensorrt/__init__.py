"""Our use of TensorRT against what can be had of it without a GPU."""
