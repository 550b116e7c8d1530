"""One query as one CUDA graph: upload, encoder plan, compose plan, scoring kernel, top-k.

The compose plan writes its terms where the scoring kernel reads them, and the kernel writes its answer into
page-locked memory, so nothing is copied in between and the host waits once.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError
from cir_infer.gpu.device import Device, Replay, Stream
from cir_infer.processes.fork import finalize_here
from cir_infer.runtime.graph import Array
from cir_infer.runtime.tensorrt.api import Context
from cir_infer.runtime.tensorrt.plan_graph import Buffer, PlanGraph, new_buffer
from cir_infer.scoring.contract import QueryTerms, TopK
from cir_infer.scoring.cuda import CudaScorer

__all__ = ["QueryChains"]

_log = logging.getLogger(__name__)

_KEPT = 8
_TOLERANCE = 1e-5
"""Between the captured and the eager chain, relative to the best score: they run the same kernels."""

Start = Literal["image", "reference", "text"]


class _Key(NamedTuple):
    start: Start
    k: int
    masked: bool


class _Chain:
    """The chain for one k, one kind of input, with or without a mask. Not for several threads at a time."""

    def __init__(
        self,
        device: Device,
        stream: Stream,
        encoder: PlanGraph | None,
        compose: PlanGraph,
        scorer: CudaScorer,
        term_count: int,
        key: _Key,
        mask_bytes: int,
    ) -> None:
        self._device, self._stream = device, stream
        self._closing = ExitStack()
        self._contexts: list[Context] = []
        self._inputs: dict[str, Buffer] = {}
        self._replay: Replay | None = None
        self._tried = False
        weighted = any(tensor.name == "weights" for tensor in compose.outputs)
        try:
            self._search = scorer.prepare(1, term_count, weighted, key.k, key.masked)
            self._closing.callback(self._search.close)
            self._mask = device.allocate_host(mask_bytes) if key.masked else None
            if self._mask is not None:
                self._closing.callback(self._mask.free)
            self._wire(encoder, compose)
        except BaseException:
            self.close()
            raise

    def topk(self, feeds: Mapping[str, Array], allow: npt.NDArray[np.uint8] | None) -> TopK:
        """The answer to one query; inside `device.active()`."""
        for name, value in feeds.items():
            staged = self._inputs[name].host.array[: value.nbytes]
            staged[:] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        if self._mask is not None and allow is not None:
            self._mask.array[: allow.nbytes] = allow
        if self._replay is None:
            self._enqueue()
        else:
            self._replay.launch()
        self._device.synchronize(self._stream)
        answer = self._search.result()
        if not self._tried:
            self._tried = True
            self._capture(answer)
        return answer

    @property
    def captured(self) -> bool:
        """Whether queries are one launch; else the chain is enqueued step by step."""
        return self._replay is not None

    def terms(self, names: tuple[str, ...], dimension: int) -> QueryTerms:
        """The terms of the last query, for the checks that the kernel does not make."""
        shape = (1, len(names), dimension)
        numerators = np.empty(shape, np.float32)
        self._device.download(numerators, self._search.numerators, self._stream)
        weights = None
        if self._search.weights:
            weights = np.empty(shape, np.float32)
            self._device.download(weights, self._search.weights, self._stream)
        return QueryTerms(numerators, weights, names)

    def close(self) -> None:
        """Free everything; nothing may be under way."""
        if self._replay is not None:
            self._replay.close()
            self._replay = None
        self._closing.close()

    def _wire(self, encoder: PlanGraph | None, compose: PlanGraph) -> None:
        """Contexts, and where each reads and writes."""
        written: dict[str, int] = {"numerators": self._search.numerators, "weights": self._search.weights}
        produced: set[str] = set()
        if encoder is not None:
            context = self._context(encoder)
            shapes = {tensor.name: _one(tensor.shape) for tensor in encoder.inputs}
            outputs = context.set_shapes(shapes)
            for tensor in encoder.inputs:
                self._feed(context, tensor.name, math.prod(shapes[tensor.name]) * tensor.dtype.itemsize)
            for tensor in encoder.outputs:
                nbytes = math.prod(outputs[tensor.name]) * tensor.dtype.itemsize
                memory = self._device.allocate(nbytes)
                self._closing.callback(memory.free)
                context.set_address(tensor.name, memory.address)
                # A gallery row is the reference embedding unless there is a graph of that name.
                written["reference"] = memory.address
                produced.add("reference")
        context = self._context(compose)
        shapes = {tensor.name: _one(tensor.shape) for tensor in compose.inputs}
        context.set_shapes(shapes)
        for tensor in compose.inputs:
            if tensor.name in produced:
                context.set_address(tensor.name, written[tensor.name])
            else:
                self._feed(context, tensor.name, math.prod(shapes[tensor.name]) * tensor.dtype.itemsize)
        for tensor in compose.outputs:
            context.set_address(tensor.name, written[tensor.name])

    def _context(self, graph: PlanGraph) -> Context:
        context = graph.context(self._stream)
        self._closing.callback(context.close)
        self._contexts.append(context)
        return context

    def _feed(self, context: Context, name: str, nbytes: int) -> None:
        buffer = new_buffer(self._device, nbytes)
        self._closing.callback(buffer.free)
        self._inputs[name] = buffer
        context.set_address(name, buffer.device.address)

    def _enqueue(self) -> None:
        """The eager chain; what is captured is exactly this."""
        handle = self._device.handle(self._stream)
        for buffer in self._inputs.values():
            self._device.upload(buffer.device.address, buffer.host.array, self._stream)
        if self._mask is not None:
            self._device.upload(self._search.allow, self._mask.array, self._stream)
        for context in self._contexts:
            context.enqueue(handle)
        self._search.launch(self._stream)

    def _capture(self, expected: TopK) -> None:
        """Capture the chain, after an eager run of the same shapes has settled all that is lazy.

        The replay must give the eager answer to the same query; where it does not, or the driver cannot
        capture, queries stay eager, which is slower and right.
        """
        replay: Replay | None = None
        try:
            replay = self._device.capture(self._stream, self._enqueue)
            replay.launch()
        except DeviceError as error:
            _log.warning("queries are not replayed as CUDA graphs (%s)", error)
            if replay is not None:
                replay.close()
            return
        self._device.synchronize(self._stream)
        found = self._search.result()
        scale = max(1e-6, float(np.abs(expected.scores[np.isfinite(expected.scores)]).max(initial=0.0)))
        same = np.array_equal(found.rows, expected.rows) and np.allclose(
            found.scores, expected.scores, rtol=0, atol=_TOLERANCE * scale
        )
        if not same:
            replay.close()
            _log.warning("queries are not replayed as CUDA graphs (the replay gave another answer)")
            return
        self._replay = replay


class QueryChains:
    """Chains for the queries of one scorer, made when they are first needed; a `Chains`.

    Args:
        device: the GPU that all of it is on.
        graphs: of the bundle; the image (or reference) graph and the compose graph must be plans.
        scorer: over the gallery.
        names: the terms' names.
    """

    def __init__(
        self, device: Device, graphs: Mapping[str, Any], scorer: CudaScorer, names: tuple[str, ...]
    ) -> None:
        self._device = device
        self._scorer = scorer
        self._names = names
        self._compose: PlanGraph = graphs["compose"]
        self._encoder: PlanGraph = graphs.get("reference") or graphs["image"]
        self._lock = threading.Lock()
        self._chains: OrderedDict[_Key, _Chain] = OrderedDict()
        with device.active():
            self._stream = device.new_stream()
        finalize_here(self, _release, device, self._stream, self._chains)

    def topk(
        self,
        image: Array | None,
        reference: Array | None,
        text: Array | None,
        k: int,
        allow: npt.NDArray[np.uint8] | None,
    ) -> TopK:
        """See `Chains.topk`."""
        start: Start = "image" if image is not None else "reference" if reference is not None else "text"
        given = {"image": image, "reference": reference, "text": text}
        feeds = {name: value for name, value in given.items() if value is not None}
        key = _Key(start, k, allow is not None)
        with self._device.active(), self._lock:  # which another thread may have held at a fork
            chain = self._chain(key, 0 if allow is None else allow.nbytes)
            answer = chain.topk(feeds, allow)
            if answer.rows[0, 0] < 0:
                # No row qualified: the mask may say so, or the terms are not finite, which is an error.
                chain.terms(self._names, self._scorer_dimension())
        return answer

    def describe(self) -> dict[str, Any]:
        """See `Chains.describe`."""
        chains = list(self._chains.items())  # without the lock, see `topk`
        return {"chains": [{**key._asdict(), "cuda_graph": chain.captured} for key, chain in chains]}

    def _scorer_dimension(self) -> int:
        numerators = next(tensor for tensor in self._compose.outputs if tensor.name == "numerators")
        return int(numerators.shape[2] or 0)

    def _chain(self, key: _Key, mask_bytes: int) -> _Chain:
        chain = self._chains.pop(key, None)
        if chain is None:
            while len(self._chains) >= _KEPT:
                self._chains.popitem(last=False)[1].close()
            encoder = self._encoder if key.start == "image" else None
            chain = _Chain(
                self._device,
                self._stream,
                encoder,
                self._compose,
                self._scorer,
                len(self._names),
                key,
                mask_bytes,
            )
        self._chains[key] = chain
        return chain


def _one(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape for a single query."""
    return tuple(1 if length is None else length for length in shape)


def _release(device: Device, stream: Stream, chains: OrderedDict[_Key, _Chain]) -> None:
    with device.active():
        device.synchronize(stream)
        for chain in chains.values():
            chain.close()
        chains.clear()
