"""OpenVINO as far as it is used: read a graph, compile it, keep it, run it. Needs the package `openvino`."""

from __future__ import annotations

import errno
import io
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from cir_infer.bundle.model import MOST_INSIDE, Model, write_model
from cir_infer.errors import BundleError, DeviceError, lack, lack_in, shown
from cir_infer.processes.ending import native_call
from cir_infer.processes.fork import ProcessBound
from cir_infer.processes.scratch import scratch_folder
from cir_infer.processes.signal_stack import signal_stack_kept
from cir_infer.runtime.graph import Array, Tensor

__all__ = ["OLDEST", "VERSION", "Compiled", "OpenVinoDevice", "Place", "Requests", "told"]

OLDEST = (2026, 4)
"""The first release that was tried."""


@contextmanager
def _silently() -> Iterator[None]:
    """Let `openvino` find no `openvino_telemetry`, with which it reports that it was imported.

    OpenVINO takes a stub where that package is missing, and for good: nothing later in this process reports
    either. Whoever has imported it before has decided.
    """
    decided = "openvino_telemetry" in sys.modules
    if not decided:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not decided:
            del sys.modules["openvino_telemetry"]


with _silently():
    import openvino as ov
    from openvino.frontend import FrontEndManager

VERSION: str = str(ov.__version__)
"""With build and branch, e.g. "2026.4.1-22982-e213a147257-releases/2026/4"."""

_AT_ONCE = "OPTIMAL_NUMBER_OF_INFER_REQUESTS"
_LEAST_AT_ONCE = 2
"""Runs under way where rows go singly: for the least latency OpenVINO names one for each stream, of which
there is one, and a device would wait while its answer is copied and the next row is."""

_TYPES = {name: np.dtype(name) for name in ("float32", "float16", "uint8", "int8", "int32", "int64")}


Place = Literal["CPU", "GPU"]
"""What OpenVINO calls a processor, and the first of Intel's GPUs."""


class Requests:
    """Inference requests of one compiled graph, one for each call that runs at a time.

    Args:
        compiled: OpenVINO's compiled model.
        memory: what keeps the memory that it reads.
        single: it takes one row of each input at a time; several runs are then under way at once.
    """

    def __init__(self, compiled: Any, memory: object = None, single: bool = False) -> None:
        self._compiled, self._memory = compiled, memory
        self._at_once = max(_LEAST_AT_ONCE, int(compiled.get_property(_AT_ONCE))) if single else 0
        self._idle: list[Any] = []

    def exported(self) -> bytes:
        """What `OpenVinoDevice.reopen` takes, of this version of OpenVINO and this processor.

        Raises:
            Exception: it cannot be had.
        """
        with native_call:
            return bytes(self._compiled.export_model().getbuffer())

    def run(self, values: list[Array]) -> list[Array]:
        """Outputs in the graph's order, of inputs in the graph's order. Threads may call this at once."""
        if self._at_once:
            return self._run_singly(values)
        request = self._take()
        _start(request, values)
        outputs = _answer(request)
        self._idle.append(request)
        return outputs

    def _run_singly(self, values: list[Array]) -> list[Array]:
        count = len(values[0])
        taken = [self._take() for _ in range(min(count, self._at_once))]
        found: list[list[Array]] = []
        try:
            for row in range(count):
                request = taken[row % len(taken)]
                if row >= len(taken):
                    found.append(_answer(request))
                _start(request, [value[row : row + 1] for value in values])
            found += [_answer(taken[row % len(taken)]) for row in range(len(found), count)]
        except BaseException:
            for request in taken:  # whoever frees one that runs waits for ever, or reads what is gone
                with suppress(Exception):
                    request.wait()
            raise
        self._idle += taken
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._compiled.create_infer_request()


def _start(request: Any, values: list[Array]) -> None:
    # On OpenVINO's own thread: run in the caller's (`infer`), a failure leaves 2026.4 with dangling pointers,
    # and a later graph crashes. Copied both ways, as a request is used again.
    request.start_async(dict(enumerate(values)), share_inputs=False)


def _answer(request: Any) -> list[Array]:
    request.wait()
    return [port.data.copy() for port in request.output_tensors]


class Compiled(NamedTuple):
    """A graph ready to run.

    Attributes:
        requests: run it.
        inputs: in the graph's order.
        outputs: in the graph's order.
    """

    requests: Requests
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


_first: ProcessBound | None = None
"""The first process that used OpenVINO. A child forked from it waits for ever on locks that were held."""


class OpenVinoDevice:
    """This machine's processor, or its Intel GPU, as OpenVINO sees it.

    Args:
        place: which.

    Raises:
        DeviceError: this OpenVINO is too old, has no plugin for the processor or finds no Intel GPU, or this
            process was forked from one that has used it.
    """

    def __init__(self, place: Place = "CPU") -> None:
        global _first
        if _first is None:
            _first = ProcessBound(
                "OpenVINO's pool of threads",
                'open the Engine before the parent opens one, start processes with the method "spawn" or '
                "\"forkserver\", or use device='cpu'",
            )
        _first.check()
        found = tuple(int(part) for part in VERSION.split("-")[0].split(".")[:2])
        if found < OLDEST:
            raise DeviceError(
                f"openvino {shown(VERSION)} is too old; expected {OLDEST[0]}.{OLDEST[1]} or later: "
                "pip install -U openvino"
            )
        self._place = place
        try:
            with signal_stack_kept(), native_call:
                self._core = ov.Core()
                # The processor is there, whatever the list says: it leaves out what could not be loaded.
                if place == "CPU" or place in {
                    name.partition(".")[0] for name in self._core.available_devices
                }:
                    self.name = str(self._core.get_property(place, "FULL_DEVICE_NAME")).strip()
                    self._can = tuple(self._core.get_property(place, "OPTIMIZATION_CAPABILITIES"))
                    return
                reason = "there is none, or no driver for it"
        except Exception as error:
            raise DeviceError(_unusable(place, told(error))) from error
        raise DeviceError(_unusable(place, reason))

    @property
    def computes_bfloat16(self) -> bool:
        """Whether it multiplies bfloat16: AMX, AVX512-BF16, or Arm's BF16."""
        return "BF16" in self._can

    def compile(
        self,
        name: str,
        model: Model,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        threads: int | None = None,
        bfloat16: bool = False,
        single: bool = False,
    ) -> Compiled:
        """Read an ONNX model and make it ready.

        Args:
            name: the graph's, for messages.
            model: the graph. It has passed `cir_infer.bundle.limits`.
            inputs: names in the graph's order; constants are none of them.
            outputs: names in the graph's order.
            threads: inside an operator; None takes the physical cores.
            bfloat16: compute products in it; else all is float32 that the graph has as float32.
            single: make it for one row of each input at a time, so that every shape is known.

        Raises:
            BundleError: OpenVINO cannot read it or has not all of its operators.
        """

        def make() -> Any:
            read = _read(model)
            if single:
                read.reshape({port.any_name: [1, *list(port.partial_shape)[1:]] for port in read.inputs})
            return self._core.compile_model(read, self._place, self._options(threads, bfloat16))

        return self._ready(name, inputs, outputs, make, single)

    def reopen(
        self,
        name: str,
        exported: Array,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        threads: int | None = None,
        bfloat16: bool = False,
        single: bool = False,
    ) -> Compiled:
        """A graph from what `Requests.exported` gave, uint8 (n,), in which its weights are read.

        OpenVINO trusts these bytes, so nobody else may have written them.

        Raises:
            BundleError: it cannot be used.
        """

        def make() -> Any:
            options = self._options(threads, bfloat16)
            return self._core.import_model(ov.Tensor(exported), self._place, options)

        return self._ready(name, inputs, outputs, make, single, exported)

    def _ready(
        self,
        name: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        make: Callable[[], Any],
        single: bool,
        memory: object = None,
    ) -> Compiled:
        # All of it: what a port says is asked without Python's lock, too.
        with native_call:
            try:
                compiled = make()
            except Exception as error:
                reason = f"OpenVINO {VERSION} cannot load the {name} graph: {told(error)}"
                raise BundleError(reason) from error
            return Compiled(
                Requests(compiled, memory, single),
                _tensors(name, "input", compiled.inputs, inputs, single),
                _tensors(name, "output", compiled.outputs, outputs, single),
            )

    def _options(self, threads: int | None, bfloat16: bool) -> dict[str, Any]:
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Types are the graph's. Left to itself OpenVINO takes bfloat16 for float32, on a GPU float16.
            "EXECUTION_MODE_HINT": "ACCURACY",
            "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        }
        if self._place == "CPU":
            # Scorer and encoders share it; where a thread runs is the caller's to say (`taskset`).
            options |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
            if threads is not None:
                options["INFERENCE_NUM_THREADS"] = threads
        return options


@cache
def _readers() -> Any:
    """Kept as long as the process lives: graphs are made of code that goes away with their manager."""
    return FrontEndManager()


@cache
def _reader() -> Any:
    return _readers().load_by_framework("onnx")


def _unusable(place: Place, reason: str) -> str:
    if place == "CPU":
        what, instead = f"this processor ({platform.machine()})", "use device='cpu'"
    else:
        what = "an Intel GPU"
        instead = (
            "install Intel's driver for OpenCL (intel-opencl-icd) where there is one, or use "
            "device='openvino' or 'cpu'"
        )
    return f"openvino {VERSION} cannot use {what}: {reason}; {instead}"


def _read(model: Model) -> Any:
    """The graph. With weights beyond what one model holds it goes through files, its own and no other's.

    Weights are no inputs that become constants later: 2026.4 makes another GRU of those, which reads padding.
    """
    if model.size <= MOST_INSIDE:
        # By name, so that nothing guesses at what the bytes are: OpenVINO reads six formats.
        reader = _reader()
        return reader.convert(reader.load(io.BytesIO(model.whole())))
    with scratch_folder("cir-openvino-") as folder:
        path = folder / "graph.onnx"
        write_model(model, path)
        reader = _reader()
        return reader.convert(reader.load(str(path)))


def _tensors(
    graph: str, side: str, ports: list[Any], names: tuple[str, ...], single: bool
) -> tuple[Tensor, ...]:
    """Inputs or outputs under the names that the ONNX model gives them.

    A port may have several names, and keeps its place. There is none for an input that nothing reads.
    """
    if side == "input":
        names = tuple(name for name in names if any(name in port.names for port in ports))
    if len(ports) != len(names):
        raise BundleError(
            f"OpenVINO reads {len(ports)} {side}s in the {graph} graph; expected {len(names)}, "
            f"{shown(list(names))}; use device='cpu'"
        )
    return tuple(_tensor(graph, side, *found, single) for found in zip(ports, names, strict=True))


def _tensor(graph: str, side: str, port: Any, name: str, single: bool) -> Tensor:
    if name not in port.names:
        raise BundleError(
            f"OpenVINO reads an {side} {shown(sorted(port.names))} in the {graph} graph where "
            f"{shown(name)} should be; use device='cpu'"
        )
    kind = np.dtype(port.element_type.to_dtype()).name
    if kind not in _TYPES:
        raise BundleError(f"the {graph} graph has {shown(name)} of type {kind}; expected {sorted(_TYPES)}")
    lengths = [axis.get_length() if axis.is_static else None for axis in port.partial_shape]
    if single:
        lengths[:1] = [None]
    return Tensor(name, _TYPES[kind], tuple(lengths))


def told(error: Exception) -> str:
    """The reason in an error of OpenVINO's, whose first lines name source files."""
    if lacking := lack_in(str(error)):
        return lacking
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from ", "While "))]
    if any(line.endswith("can't alloc") for line in lines):  # of a node, where its memory is taken
        return str(lack(MemoryError()))
    if told[-1:] == [os.strerror(errno.EAGAIN)]:
        return "no thread can be started now: there is no memory for it, or the limit (ulimit -u) is reached"
    return shown(" ".join(told) or type(error).__name__, 300)
