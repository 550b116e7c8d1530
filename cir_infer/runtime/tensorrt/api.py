"""TensorRT itself: builds plans, reads them, runs them. The only module that touches `tensorrt`.

Only the name-based interface is used, which TensorRT 8.6, 10 and 11 share; what differs is in
`typed_by_graph` and `typed_by_flags`. Importing this module imports `tensorrt`, which is safe without a GPU;
everything else here crashes without one, so callers ask `missing_gpu()` first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorrt as trt

from cir_infer.errors import BundleError, DeviceError, shown
from cir_infer.runtime.graph import Tensor
from cir_infer.runtime.tensorrt.profiles import Limits, Profile, profiles_for

__all__ = ["MAJOR", "TYPING", "VERSION", "BuiltPlan", "Context", "LoadedPlan", "build_plan"]

VERSION: str = trt.__version__
MAJOR = int(VERSION.split(".")[0])
if tuple(int(part) for part in VERSION.split(".")[:2]) < (8, 6):
    raise ImportError(f"tensorrt {VERSION} is too old; cir-infer needs 8.6 or later")
if MAJOR >= 10:
    from cir_infer.runtime.tensorrt.typed_by_graph import (
        TYPING,
        create_context,
        create_network,
        place_of,
        set_types,
        watch,
    )
else:
    from cir_infer.runtime.tensorrt.typed_by_flags import (
        TYPING,
        create_context,
        create_network,
        place_of,
        set_types,
        watch,
    )

_KEPT_LINES = 20
_TYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "UINT8": np.dtype(np.uint8),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}


class _Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
    """Keeps the last errors and warnings, for the message of whatever fails."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Called by TensorRT, from any of its threads."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self._lines.append(" ".join(msg.split()))

    def said(self) -> str:
        """The errors since the last call, for the end of a message."""
        lines = list(dict.fromkeys(self._lines))
        self._lines.clear()
        return f": {' | '.join(lines[-3:])}" if lines else ""


class BuiltPlan(NamedTuple):
    """What a build gives.

    Attributes:
        plan: the serialised plan.
        timings: the timing cache, enriched by this build.
    """

    plan: bytes
    timings: bytes


def build_plan(
    name: str,
    path: Path,
    limits: Limits,
    workspace: int,
    timings: bytes,
    report: Callable[[float, str], None],
) -> BuiltPlan:
    """Compile an ONNX graph for the GPU at hand; minutes.

    Args:
        name: the graph's name, for messages.
        path: of the ONNX model, weights that it does not hold beside it; its types are the plan's types.
        limits: the shapes to serve.
        workspace: GPU bytes that the fastest kernels may use as scratch, and building with them.
        timings: a timing cache of the same GPU and version, or nothing.
        report: told the share that is done and the phase, where this version of TensorRT tells.

    Raises:
        BundleError: the graph is no ONNX model.
        DeviceError: TensorRT cannot build it; the message holds TensorRT's own words.
    """
    log = _Log()
    builder = trt.Builder(log)
    network = create_network(builder)
    parser = trt.OnnxParser(network, log)
    if not parser.parse(path.read_bytes(), str(path)):
        errors = [parser.get_error(index) for index in range(min(parser.num_errors, 3))]
        said = [place_of(error) + " ".join(error.desc().split()) for error in errors]
        reasons = "; ".join(said) or "no reason given"
        raise BundleError(f"TensorRT {VERSION} cannot read the {name} graph ({reasons}); use device='cuda'")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    # float32 means float32: the types are the graph's, and TF32 would round its products to 10 bits.
    config.clear_flag(trt.BuilderFlag.TF32)
    set_types(network, config)
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    for profile in profiles_for({tensor.name: tuple(tensor.shape) for tensor in inputs}, limits):
        config.add_optimization_profile(_profile(builder, profile))
    cache = config.create_timing_cache(timings) or config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    watching = watch(config, report)
    plan = builder.build_serialized_network(network, config)
    del watching
    if plan is None:
        raise DeviceError(
            f"TensorRT {VERSION} cannot build the {name} graph with {workspace >> 20} MiB of workspace"
            f"{log.said()}; free GPU memory if that is what is missing, else use device='cuda'"
        )
    kept = config.get_timing_cache()
    return BuiltPlan(bytes(plan), b"" if kept is None else bytes(kept.serialize()))


def _profile(builder: trt.Builder, ranges: Profile) -> trt.IOptimizationProfile:
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in ranges.items():
        profile.set_shape(name, least, best, most)
    return profile


class LoadedPlan:
    """A plan that TensorRT has accepted. Make contexts of it inside the device's primary context.

    Attributes:
        inputs: the graph's inputs; `outputs` likewise.

    Raises:
        DeviceError: TensorRT refuses the plan.
    """

    def __init__(self, name: str, plan: bytes) -> None:
        self._name = name
        self._log = _Log()
        self._runtime = trt.Runtime(self._log)
        # A plan may carry programs for the host; ours never do, so one that does is not ours.
        self._runtime.engine_host_code_allowed = False
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeviceError(f"TensorRT {VERSION} refuses the plan of the {name} graph{self._log.said()}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        read = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self.inputs = tuple(self._tensor(name) for name in names if name in read)
        self.outputs = tuple(self._tensor(name) for name in names if name not in read)

    def most(self, profile: int) -> dict[str, tuple[int, ...]]:
        """The largest shape of every input in a profile."""
        return {
            tensor.name: tuple(self._engine.get_tensor_profile_shape(tensor.name, profile)[2])
            for tensor in self.inputs
        }

    def context(self, profile: int, stream: int) -> Context:
        """What runs the plan; it has memory of its own and belongs to one stream.

        Args:
            profile: the number of the optimisation profile.
            stream: the driver's handle of the stream.

        Raises:
            DeviceError: no memory for it, or no such profile.
        """
        context = create_context(self._engine)
        if context is None:
            raise DeviceError(
                f"TensorRT has no memory to run the {self._name} graph{self._log.said()}; free GPU memory"
            )
        if not context.set_optimization_profile_async(profile, stream):
            raise DeviceError(
                f"the plan of the {self._name} graph has no profile {profile}{self._log.said()}"
            )
        return Context(self._name, context, self._log, [tensor.name for tensor in self.outputs])

    def close(self) -> None:
        """Let TensorRT free the plan, once all contexts are closed; inside the primary context."""
        del self._engine, self._runtime

    def _tensor(self, name: str) -> Tensor:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in _TYPES:
            raise BundleError(
                f"the {self._name} graph has {shown(name)} of type {kind}; expected {sorted(_TYPES)}"
            )
        shape = tuple(self._engine.get_tensor_shape(name))
        return Tensor(name, _TYPES[kind], tuple(None if length < 0 else length for length in shape))


class Context:
    """Runs a plan on one stream; not for several threads at a time. Make one with `LoadedPlan.context`."""

    def __init__(self, graph: str, context: trt.IExecutionContext, log: _Log, outputs: list[str]) -> None:
        self._graph = graph
        self._context = context
        self._log = log
        self._outputs = outputs

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Fix the shapes of the inputs; returns those of the outputs.

        Raises:
            DeviceError: a shape is outside the profile.
        """
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise DeviceError(
                    f"the plan of the {self._graph} graph takes no {shown(name)} of {shape}{self._log.said()}"
                )
        return {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}

    def set_address(self, name: str, address: int) -> None:
        """Where an input is read from or an output written to, in GPU memory."""
        if not self._context.set_tensor_address(name, address):
            raise DeviceError(
                f"the plan of the {self._graph} graph has no tensor {shown(name)}{self._log.said()}"
            )

    def enqueue(self, stream: int) -> None:
        """Put one run on the stream.

        Raises:
            DeviceError: TensorRT refuses.
        """
        if not self._context.execute_async_v3(stream):
            raise DeviceError(f"TensorRT failed in the {self._graph} graph{self._log.said()}")

    def close(self) -> None:
        """Free the context's memory, inside the primary context; no run may be under way."""
        del self._context
