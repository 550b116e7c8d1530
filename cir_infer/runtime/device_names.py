"""Names of devices. Imports nothing, so that a command line may list them."""

__all__ = ["AUTO", "DEVICES", "ON_GPU", "ON_INTEL_GPU", "ON_PROCESSOR", "OPENVINO"]

ON_GPU = ("cuda", "tensorrt", "ort-tensorrt")
"""What runs graphs on an NVIDIA GPU."""

ON_PROCESSOR = ("cpu", "openvino")
"""What runs them on the processor: ONNX Runtime, the reference, and OpenVINO."""

ON_INTEL_GPU = ("openvino-gpu",)
"""What runs encoders of images on an Intel GPU, and all else on the processor."""

OPENVINO = ("openvino", *ON_INTEL_GPU)
"""What goes through OpenVINO."""

AUTO = ("tensorrt", "cuda", "cpu")
"""Of which "auto" takes the first that works."""

DEVICES = ("auto", *ON_PROCESSOR, *ON_INTEL_GPU, *ON_GPU)
"""What `Engine` takes as a device."""
