"""TensorRT 10 and later: the graph's own types, progress while building, memory for each profile."""

from __future__ import annotations

from collections.abc import Callable

import tensorrt as trt

from cir_infer.errors import shown

__all__ = ["TYPING", "create_context", "create_network", "place_of", "set_types", "watch"]

TYPING = "strongly typed"


def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    """An empty network that keeps the types of the graph."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def set_types(network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
    """Nothing to do: the network was created strongly typed."""


def place_of(error: trt.ParserError) -> str:
    """The node that the parser stumbled on, for the start of a message; nothing if it was none."""
    return f"{error.node_operator()} {shown(error.node_name())}: " if error.node_operator() else ""


def create_context(engine: trt.ICudaEngine) -> trt.IExecutionContext | None:
    """A context with memory for the profile that it will run, not for the largest one of the plan."""
    return engine.create_execution_context(trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)


def watch(config: trt.IBuilderConfig, report: Callable[[float, str], None]) -> object:
    """Report progress while building.

    Args:
        config: of the build.
        report: called with the share that is done, 0 to 1, and the phase's name.

    Returns:
        What must be kept alive until the build ends.
    """
    monitor = _Monitor(report)
    config.progress_monitor = monitor
    return monitor


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
    """Nested phases as one share: a step of the outer phase counts as far as its inner phase has come."""

    def __init__(self, report: Callable[[float, str], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._report = report
        self._phases: list[tuple[str, int, int]] = []
        self._share = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
        """See TensorRT's IProgressMonitor."""
        self._phases.append((phase_name, max(1, int(num_steps)), 0))

    def step_complete(self, phase_name: str, step: int) -> bool:
        """See TensorRT's IProgressMonitor; False would stop the build."""
        self._phases = [
            (name, steps, int(step) + 1 if name == phase_name else done) for name, steps, done in self._phases
        ]
        share, width = 0.0, 1.0
        for _, steps, done in self._phases:
            share += width * min(done, steps) / steps
            width /= steps
        # A later phase of the same level starts at 0 again; what was reported stays.
        self._share = max(self._share, min(share, 1.0))
        self._report(self._share, phase_name)
        return True

    def phase_finish(self, phase_name: str) -> None:
        """See TensorRT's IProgressMonitor."""
        self._phases = [phase for phase in self._phases if phase[0] != phase_name]
