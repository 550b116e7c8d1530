"""Names of devices. Imports nothing, so that a command line may list them."""

__all__ = ["AUTO", "DEVICES", "ON_GPU", "ON_PROCESSOR"]

ON_GPU = ("cuda", "tensorrt", "ort-tensorrt")
"""What runs graphs on an NVIDIA GPU."""

ON_PROCESSOR = ("cpu", "openvino")
"""What runs them on the processor: ONNX Runtime, the reference, and OpenVINO."""

AUTO = ("tensorrt", "cuda", "cpu")
"""Of which "auto" takes the first that works."""

DEVICES = ("auto", "cpu", "openvino", *ON_GPU)
"""What `Engine` takes as a device."""
