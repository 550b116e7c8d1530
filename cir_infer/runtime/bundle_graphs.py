"""The graphs of a bundle on a device, also in a process that was forked from the one that opened them."""

from __future__ import annotations

from functools import partial

from cir_infer.bundle import Bundle
from cir_infer.errors import DeviceError
from cir_infer.gpu.driver import missing_gpu
from cir_infer.processes.fork import PerProcess
from cir_infer.runtime.device_names import ON_GPU, ON_INTEL_GPU, ON_PROCESSOR
from cir_infer.runtime.devices import OpenedGraphs, open_graphs
from cir_infer.runtime.kept.ahead import ReadAhead
from cir_infer.runtime.kept.graph_file import read_graph
from cir_infer.runtime.kept.names import StoredGraph
from cir_infer.runtime.openvino.one_row import is_apart
from cir_infer.runtime.plan_policy import PlanPolicy

__all__ = ["open_bundle_graphs", "read_ahead"]


def read_ahead(bundle: Bundle, device: str) -> ReadAhead:
    """Begin to read what is kept of a bundle's graphs, where they will run on the processor."""
    if device == "auto":
        if bundle.manifest.precision == "bfloat16":
            device = "openvino"
        elif missing_gpu() is not None:
            device = "cpu"
    in_place = device == "cpu" and bundle.manifest.weights is not None
    if device not in (*ON_PROCESSOR, *ON_INTEL_GPU) or in_place:
        return ReadAhead({}, device)
    stored = {name: _stored(bundle, name) for name in bundle.manifest.graphs}
    for name, graph in stored.items():
        if is_apart(device, bundle.manifest.precision, name):
            stored[name] = graph._replace(rows=1)
    return ReadAhead(stored, device)


def open_bundle_graphs(
    bundle: Bundle, device: str, threads: int | None, policy: PlanPolicy, ahead: ReadAhead | None = None
) -> PerProcess[OpenedGraphs]:
    """The graphs, opened here and now; a forked child opens them once more on its first call.

    In a child the bundle is read again, and refused where it is not what it was. A GPU is refused, whose
    context belongs to the process that made it, and so is OpenVINO, whose locks and threads do.

    Raises:
        BundleError, DeviceError, UsageError: see `open_graphs`.
    """
    opened = _open(bundle, device, threads, policy, ahead)
    again = partial(_open_in_child, bundle, opened.backend.device, threads, policy)
    return PerProcess(again, opened)


def _open(
    bundle: Bundle, device: str, threads: int | None, policy: PlanPolicy, ahead: ReadAhead | None = None
) -> OpenedGraphs:
    models = {name: _stored(bundle, name, ahead) for name in bundle.manifest.graphs}
    return open_graphs(models, device, threads, policy)


def _stored(bundle: Bundle, name: str, ahead: ReadAhead | None = None) -> StoredGraph:
    members, weights = bundle.manifest.members, bundle.manifest.weights
    member = members[bundle.manifest.graphs[name]]
    size = member.bytes + (0 if weights is None else members[weights].bytes)
    found = read_graph if ahead is None else partial(ahead.take, name)
    read = partial(bundle.graph, name)
    text = bundle.manifest.text
    said = member.sha256, size, bundle.checked_for(name)
    return StoredGraph(*said, read, found, weights is not None, 1 if text is None else text.max_tokens)


def _open_in_child(bundle: Bundle, device: str, threads: int | None, policy: PlanPolicy) -> OpenedGraphs:
    if device != "cpu":
        what = "GPU context" if device in ON_GPU else "threads"
        verb = "belongs" if device in ON_GPU else "belong"
        raise DeviceError(
            f"an Engine on {device} does not survive a fork, because its {what} {verb} to the process that "
            "opened it; open the Engine in the child, before the parent opens one, or start processes with "
            'the method "spawn" or "forkserver"'
        )
    return _open(bundle, device, threads, policy)
