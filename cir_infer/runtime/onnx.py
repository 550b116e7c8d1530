"""ONNX Runtime on the CPU or on CUDA.

ONNX Runtime falls back to the CPU without an error when a GPU provider cannot start, so a session is
judged by the providers that it really has, never by those that the library lists.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cir_infer.bundle.initializers import KIND, initializers
from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_form import check_self_contained
from cir_infer.bundle.wire import fields_of
from cir_infer.errors import BundleError, DeviceError, lack_in, shown
from cir_infer.processes.ending import native_call
from cir_infer.processes.fork import PerProcess
from cir_infer.runtime.byte_products import exact_products
from cir_infer.runtime.compose_parts import compose_graph
from cir_infer.runtime.graph import Array, Graph, Tensor
from cir_infer.runtime.kept.weights import Weight, with_weights, without_weights
from cir_infer.runtime.outputs import one_for_each
from cir_infer.runtime.threads import threads_for

if TYPE_CHECKING:
    from cir_infer.runtime.kept.graph_file import GraphFile
    from cir_infer.scoring.contract import Scorer

# Since 1.29 ONNX Runtime sends telemetry unless told otherwise before it is imported; a user who has
# set the variable, to anything, has decided.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["OnnxBackend", "OnnxGraph"]

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
}
_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
}
_ERRORS_ONLY = 3
_FILES = "session.model_external_initializers_file_folder_path"
_WITHOUT = "optimization.disable_specified_optimizers"
_WITHOUT_TF32 = "without-tf32"
"""The folder of engines that were built where NVIDIA's variable forbids it."""
_FLOAT16 = 10
"""ONNX's number of the type."""


class OnnxBackend:
    """ONNX Runtime with one execution provider.

    Args:
        device: "cpu", "cuda", or "ort-tensorrt" for the TensorRT provider, which keeps engines of its own.
        threads: threads inside an operator; None lets ONNX Runtime take the physical cores.

    Raises:
        DeviceError: this build of ONNX Runtime has no such provider.
    """

    def __init__(self, device: Literal["cpu", "cuda", "ort-tensorrt"], threads: int | None = None) -> None:
        self.device: str = device
        self._threads = threads
        self._provider = _PROVIDERS[device]
        if self._provider not in ort.get_available_providers():
            raise DeviceError(
                f"the installed onnxruntime {ort.__version__} has no {self._provider}; install "
                "onnxruntime-gpu in place of onnxruntime (never both), or use device='cpu'"
            )
        if device != "cpu" and hasattr(ort, "preload_dlls"):
            # CUDA and cuDNN that came as pip packages are not on the loader's path.
            ort.preload_dlls()

    def load(self, name: str, model: Model) -> Graph:
        """See `Backend.load`."""
        return self._loaded(name, model, lambda part: self._opened(name, part, self._given(name, part)))

    def session(self, name: str, model: Model) -> ort.InferenceSession:
        """What runs a graph, as `load` makes it, for whoever binds memory to it; the model is to outlive it.

        Raises:
            BundleError, DeviceError: see `Backend.load`.
        """
        return self._session(name, model, self._given(name, model))

    def _loaded(self, name: str, model: Model, load: Callable[[Model], Graph]) -> Graph:
        begins = name == "compose" and self.device == "cpu"
        return compose_graph(model, load) if begins else load(model)

    @property
    def reads_in_place(self) -> bool:
        """See `Keeping.reads_in_place`."""
        return True

    def made_by(self) -> dict[str, Any]:
        """See `Keeping.made_by`."""
        return {"onnxruntime": [ort.__version__, ort.get_build_info()]}

    def form(
        self,
        name: str,
        model: Model,
        graph: Graph,  # noqa: ARG002
        scratch: Path,
    ) -> tuple[bytes, list[Weight]]:
        """See `Keeping.form`: the graph as this ONNX Runtime computes it on this processor.

        Raises:
            BundleError: it cannot be loaded, or not be written.
        """
        optimised = scratch / "optimised.onnx"
        options = self._given(name, model)
        options.optimized_model_filepath = str(optimised)
        self._opened(name, model, options)
        bare, weights = without_weights(optimised.read_bytes())
        optimised.unlink()
        check_self_contained(bare)
        return bare, weights

    def reopen(self, name: str, found: GraphFile) -> Graph:
        """See `Keeping.reopen`."""
        check_self_contained(found.model)
        return self.load_optimised(name, with_weights(found.model, found.weights))

    def load_optimised(self, name: str, model: Model) -> Graph:
        """An optimised graph as it is, computing with the weights where they lie.

        Handed over as they are in `load`, they would be copied. As initialisers of the session they are not,
        whose values no optimiser sees, and none has to; the graph must say that they lie in `os.devnull`.

        Raises:
            BundleError: it cannot be loaded.
        """
        return self._loaded(name, model, lambda part: self._opened_as_it_is(name, part))

    def _opened_as_it_is(self, name: str, model: Model) -> OnnxGraph:
        options = self._options(name, model)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_FILES, str(Path(os.devnull).parent))
        held = {key: ort.OrtValue.ortvalue_from_numpy(value) for key, value in model.weights.items()}
        for key, value in held.items():
            options.add_initializer(key, value)
        return self._opened(name, model, options, held)

    def _given(self, name: str, model: Model) -> ort.SessionOptions:
        """Options under which a bundle's graph is read.

        It holds all its weights: a graph must not pull files of this machine into its tensors. Weights beside
        the graph are handed over, by name, in place of what the graph says of a file.
        """
        options = self._options(name, model)
        options.add_session_config_entry(_FILES, os.devnull)
        if model.weights:
            values = [ort.OrtValue.ortvalue_from_numpy(value) for value in model.weights.values()]
            options.add_external_initializers(list(model.weights), values)
        if self.device == "cpu" and _holds_float16(model):
            # ONNX Runtime 1.32 ends the process where a product of float16 reads what a Transpose gives.
            options.add_session_config_entry(_WITHOUT, "MatmulTransposeFusion")
        return options

    def _options(self, name: str, model: Model) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.inter_op_num_threads = 1
        # A query runs several sessions, each with threads of its own. Spinning, they take the cores from one
        # another: measured on two cores, an encoder takes twice as long. Alone it would gain 2%.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        exact = exact_products(model) if self.device == "cpu" else None
        if exact is not None:
            options.add_session_config_entry(*exact)
        threads = threads_for(name, model.size, self._threads)
        if threads is not None:
            options.intra_op_num_threads = threads
        return options

    def _opened(
        self,
        name: str,
        model: Model,
        options: ort.SessionOptions,
        held: Mapping[str, ort.OrtValue] | None = None,
    ) -> OnnxGraph:
        return OnnxGraph(name, self._session(name, model, options), (model.weights, held))

    def _session(self, name: str, model: Model, options: ort.SessionOptions) -> ort.InferenceSession:
        try:
            with native_call:
                session = ort.InferenceSession(model.data, options, providers=self._wanted())
        except Exception as error:  # the binding's exceptions share no base class of their own
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load the {name} graph: {_first_line(error)}"
            ) from error
        model.release_pages()  # it has made its own of most
        if session.get_providers()[0] != self._provider:
            raise DeviceError(
                f"ONNX Runtime could not start {self._provider} for the {name} graph and offered "
                f"{session.get_providers()}; check the driver, CUDA and cuDNN against what onnxruntime-gpu "
                f"{ort.__version__} needs, or use device='cpu'"
            )
        return session

    def chains(self, graphs: Mapping[str, Graph], scorer: Scorer, names: tuple[str, ...]) -> None:
        """See `Backend.chains`: sessions give their results back to the host."""

    def _wanted(self) -> list[str | tuple[str, dict[str, Any]]]:
        """The provider with its options; CUDA takes what TensorRT's does not know."""
        if self.device == "cpu":
            return [self._provider]
        # Float32 means float32: from Ampere on products would be rounded to 10 bits.
        cuda = _PROVIDERS["cuda"], {"use_tf32": "0"}
        if self.device == "cuda":
            return [cuda]
        from cir_infer.runtime.tensorrt.plan_cache import PlanCache, cache_folder

        # Types are the graph's, as in our own plans; ONNX Runtime names engines by graph, GPU and version. It
        # cannot be told to build them without TF32, and the variable that tells it is not in their names.
        engines = cache_folder() / _WITHOUT_TF32 if _forbids_tf32() else cache_folder()
        folder = str(PlanCache(engines).folder)
        options = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": folder,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": folder,
        }
        return [(self._provider, options), cuda]

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        return {
            "library": f"onnxruntime {ort.__version__}",
            "provider": self._provider,
            "threads": self._threads,
        }


def _forbids_tf32() -> bool:
    return os.environ.get("NVIDIA_TF32_OVERRIDE", "").strip() == "0"


def _holds_float16(model: Model) -> bool:
    try:
        return any((KIND, _FLOAT16) in fields_of(constant) for constant in initializers(model.data))
    except (BundleError, ValueError, IndexError):
        return False  # it is no model, which ONNX Runtime says better


class OnnxGraph:
    """An inference session. Threads may share it; a forked child neither uses nor frees it.

    Args:
        name: of the graph.
        session: that runs it.
        weights: what keeps the memory that the session reads.
    """

    def __init__(self, name: str, session: ort.InferenceSession, weights: object = None) -> None:
        self._name = name
        self._weights = weights
        self._session = PerProcess(partial(_refuse_in_child, name), session)
        self.inputs = tuple(_tensor(name, info) for info in session.get_inputs())
        self.outputs = tuple(_tensor(name, info) for info in session.get_outputs())
        self._output_names = [tensor.name for tensor in self.outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`."""
        session = self._session.get()
        try:
            with native_call:
                values = _values(session, self._output_names, dict(feeds))
        except Exception as error:
            raise DeviceError(
                f"ONNX Runtime failed in the {self._name} graph: {_first_line(error)}"
            ) from error
        return one_for_each(self._name, feeds, dict(zip(self._output_names, values, strict=True)))


def _values(session: ort.InferenceSession, names: list[str], feeds: dict[str, Array]) -> Any:
    """What a session gives, by what it runs by itself where that is there and takes what it took so far.

    Its own `run` looks at every input once more, which takes a small graph 10 to 30 microseconds, and after a
    failure it goes on with another provider and only prints that.
    """
    bare = getattr(session, "_sess", None)
    if bare is not None:
        with suppress(AttributeError, TypeError):  # another version's; nothing was computed
            return bare.run(names, feeds, None)
    return session.run(names, feeds)


def _refuse_in_child(name: str) -> ort.InferenceSession:
    raise DeviceError(
        f"the {name} graph was opened by the process from which this one was forked, and its threads stayed "
        "there; open the bundle in this process"
    )


def _tensor(graph: str, info: Any) -> Tensor:
    if info.type not in _TYPES:
        raise BundleError(
            f"the {graph} graph has {shown(info.name)} of type {info.type}; expected {sorted(_TYPES)}"
        )
    shape = tuple(length if isinstance(length, int) else None for length in info.shape)
    return Tensor(info.name, _TYPES[info.type], shape)


def _first_line(error: Exception) -> str:
    return lack_in(str(error)) or str(error).strip().split("\n", 1)[0]
