"""A plan as a `Graph`: staging buffers that are reused, one stream, one context for each profile."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cir_infer.errors import DeviceError
from cir_infer.gpu.device import Device, HostMemory, Memory, Stream
from cir_infer.processes.fork import finalize_here
from cir_infer.runtime.graph import Array
from cir_infer.runtime.tensorrt.api import Context, LoadedPlan
from cir_infer.runtime.tensorrt.profiles import BATCH, SINGLE

__all__ = ["Buffer", "PlanGraph", "new_buffer"]


class Buffer(NamedTuple):
    """Memory of one tensor: page-locked on the host, and on the GPU."""

    host: HostMemory
    device: Memory

    def free(self) -> None:
        """Give both back."""
        self.host.free()
        self.device.free()


def new_buffer(device: Device, nbytes: int) -> Buffer:
    """A buffer of at least one byte; inside `device.active()`."""
    host = device.allocate_host(max(nbytes, 1))
    try:
        return Buffer(host, device.allocate(max(nbytes, 1)))
    except BaseException:
        host.free()
        raise


class _Lane:
    """One profile with its context, its buffers for the largest shapes, and the shapes it stands at."""

    def __init__(self, plan: LoadedPlan, device: Device, stream: Stream, profile: int) -> None:
        self.most = plan.most(profile)
        self._context = plan.context(profile, device.handle(stream))
        self._plan, self._device, self._stream = plan, device, stream
        self.buffers: dict[str, Buffer] = {}
        outputs = self._context.set_shapes(self.most)
        self._shapes, self._outputs = dict(self.most), outputs
        try:
            for tensor in (*plan.inputs, *plan.outputs):
                shape = {**self.most, **outputs}[tensor.name]
                buffer = new_buffer(device, math.prod(shape) * tensor.dtype.itemsize)
                self.buffers[tensor.name] = buffer
                self._context.set_address(tensor.name, buffer.device.address)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        shapes = {name: value.shape for name, value in feeds.items()}
        if shapes != self._shapes:
            self._outputs = self._context.set_shapes(shapes)
            self._shapes = shapes
        for name, value in feeds.items():
            buffer = self.buffers[name]
            staged = buffer.host.array[: value.nbytes]
            staged[:] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            self._device.upload(buffer.device.address, staged, self._stream)
        self._context.enqueue(self._device.handle(self._stream))
        results: dict[str, Array] = {}
        for tensor in self._plan.outputs:
            shape = self._outputs[tensor.name]
            buffer = self.buffers[tensor.name]
            staged = buffer.host.array[: math.prod(shape) * tensor.dtype.itemsize]
            self._device.download(staged, buffer.device.address, self._stream)
            results[tensor.name] = staged.view(tensor.dtype).reshape(shape).copy()
        return results

    def close(self) -> None:
        self._context.close()
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()


class PlanGraph:
    """A graph that runs as a TensorRT plan. Threads may share one; their runs take turns.

    All memory is taken when a profile is first used and never grows after that.

    Args:
        name: the graph's name.
        plan: the serialised plan, whose content was checked.
        device: the GPU.

    Raises:
        DeviceError: TensorRT refuses the plan.
    """

    def __init__(self, name: str, plan: bytes, device: Device) -> None:
        self.name = name
        self._device = device
        self._lock = threading.Lock()
        self._lanes: dict[int, _Lane] = {}
        with device.active():
            self._stream = device.new_stream()
            self.plan = LoadedPlan(name, plan)
        self.inputs, self.outputs = self.plan.inputs, self.plan.outputs
        # Also at interpreter exit, while the GPU's context is still there.
        finalize_here(self, _release, device, self._stream, self._lanes, self.plan)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Graph.run`. Batches beyond the plan's are run in parts.

        Raises:
            DeviceError: an input is missing or has another type or shape, or the GPU failed.
        """
        rows = self._check(feeds)
        with self._device.active(), self._lock:  # which another thread may have held at a fork
            if rows == 0:
                return self._nothing()
            lane = self._lane(SINGLE if rows == 1 else BATCH)
            most = next(iter(lane.most.values()))[0]
            parts = [
                lane.run({name: value[start : start + most] for name, value in feeds.items()})
                for start in range(0, rows, most)
            ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def context(self, stream: Stream) -> Context:
        """A context of its own for single queries, inside `device.active()`: e.g. for a captured graph."""
        return self.plan.context(SINGLE, self._device.handle(stream))

    def _lane(self, profile: int) -> _Lane:
        lane = self._lanes.get(profile)
        if lane is None:
            lane = self._lanes[profile] = _Lane(self.plan, self._device, self._stream, profile)
        return lane

    def _check(self, feeds: Mapping[str, Array]) -> int:
        """The number of rows; TensorRT would read beyond an array that is too small."""
        rows = {len(feeds[tensor.name]) for tensor in self.inputs if tensor.name in feeds}
        fits = set(feeds) == {tensor.name for tensor in self.inputs} and len(rows) == 1
        for tensor in self.inputs if fits else ():
            value = feeds[tensor.name]
            fits &= value.dtype == tensor.dtype and value.ndim == len(tensor.shape)
            fits &= all(want in (None, got) for want, got in zip(tensor.shape, value.shape, strict=False))
        if not fits:
            given = {name: f"{value.dtype} {value.shape}" for name, value in feeds.items()}
            expected = {tensor.name: f"{tensor.dtype} {tensor.shape}" for tensor in self.inputs}
            raise DeviceError(f"the plan of the {self.name} graph takes {expected}, not {given}")
        return rows.pop()

    def _nothing(self) -> dict[str, Array]:
        return {
            tensor.name: np.empty((0, *(length or 0 for length in tensor.shape[1:])), tensor.dtype)
            for tensor in self.outputs
        }


def _release(device: Device, stream: Stream, lanes: dict[int, _Lane], plan: LoadedPlan) -> None:
    with device.active():
        device.synchronize(stream)
        for lane in lanes.values():
            lane.close()
        lanes.clear()
        plan.close()
