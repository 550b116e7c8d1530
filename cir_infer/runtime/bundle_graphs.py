"""The graphs of a bundle on a device, also in a process that was forked from the one that opened them."""

from __future__ import annotations

from functools import partial

from cir_infer.bundle import Bundle
from cir_infer.bundle.model import Model
from cir_infer.errors import DeviceError
from cir_infer.processes.fork import PerProcess
from cir_infer.runtime.device_names import ON_GPU
from cir_infer.runtime.devices import OpenedGraphs, open_graphs
from cir_infer.runtime.kept.graphs import StoredGraph
from cir_infer.runtime.plan_policy import PlanPolicy

__all__ = ["open_bundle_graphs"]


def open_bundle_graphs(
    bundle: Bundle, device: str, threads: int | None, policy: PlanPolicy
) -> PerProcess[OpenedGraphs]:
    """The graphs, opened here and now; a forked child opens them once more on its first call.

    In a child the bundle is read again, and refused where it is not what it was. A GPU is refused, whose
    context belongs to the process that made it, and so is OpenVINO, whose locks and threads do.

    Raises:
        BundleError, DeviceError, UsageError: see `open_graphs`.
    """
    opened = _open(bundle, device, threads, policy)
    again = partial(_open_in_child, bundle, opened.backend.device, threads, policy)
    return PerProcess(again, opened)


def _open(bundle: Bundle, device: str, threads: int | None, policy: PlanPolicy) -> OpenedGraphs:
    return open_graphs(
        {name: _stored(bundle, name) for name in bundle.manifest.graphs}, device, threads, policy
    )


def _stored(bundle: Bundle, name: str) -> StoredGraph | Model:
    manifest = bundle.manifest
    if manifest.weights is not None:  # which are mapped already, and may be more than a model holds
        return bundle.graph(name)
    member = manifest.members[manifest.graphs[name]]
    return StoredGraph(member.sha256, member.bytes, bundle.checked_for(name), partial(bundle.graph, name))


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
