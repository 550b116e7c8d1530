"""TensorRT as a `Backend`: finds, builds and checks the plans of a bundle's graphs."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from cir_infer.bundle.model import Model
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.errors import CirError, DeviceError, UsageError, shown
from cir_infer.gpu.device import Device
from cir_infer.runtime.chains import Chains
from cir_infer.runtime.graph import Graph
from cir_infer.runtime.onnx import OnnxBackend
from cir_infer.runtime.parity import FURTHEST, check_parity, computes_in
from cir_infer.runtime.plan_policy import PlanPolicy, PlanUnavailableError
from cir_infer.runtime.recurrent.encoder import RecurrentEncoder
from cir_infer.runtime.recurrent.opening import open_encoder
from cir_infer.runtime.tensorrt.api import TYPING, VERSION
from cir_infer.runtime.tensorrt.building import (
    build_apart,
    build_progress,
    check_encoder_apart,
    try_apart,
    workspace_for,
)
from cir_infer.runtime.tensorrt.chain import QueryChains
from cir_infer.runtime.tensorrt.placement import choose_placement
from cir_infer.runtime.tensorrt.plan_cache import PlanCache, cache_folder, l4t_release
from cir_infer.runtime.tensorrt.plan_file import PlanFile, PlanKey
from cir_infer.runtime.tensorrt.plan_graph import PlanGraph
from cir_infer.runtime.tensorrt.profiles import Limits
from cir_infer.scoring.contract import Scorer
from cir_infer.scoring.cuda import CudaScorer

__all__ = ["TensorRTBackend"]

_log = logging.getLogger(__name__)

_FLAGS = (TYPING, "no TF32", "no host code")

_INSTEAD = "use device='cuda', or a bundle of another precision"


class TensorRTBackend:
    """Runs graphs as TensorRT plans on one GPU; the text encoder wherever it was measured to be faster.

    Args:
        policy: what to do where there is no plan, and what plans must serve.
        threads: CPU threads of a text encoder on the CPU.
        device: the GPU.
        cache: the folder of plans; None is the user's.

    Raises:
        DeviceError: the plan cache cannot be used.
    """

    device = "tensorrt"

    def __init__(
        self, policy: PlanPolicy, threads: int | None, device: Device, cache: PlanCache | None = None
    ) -> None:
        self._policy = policy
        self._gpu = device
        self._cpu = OnnxBackend("cpu", threads)
        self._cache = PlanCache(cache_folder()) if cache is None else cache
        self._limits = Limits(_batch_limit(device.integrated), policy.tokens)
        self._l4t = l4t_release()
        self._plans: dict[str, dict[str, Any]] = {}

    def load(self, name: str, model: Model) -> Graph:
        """See `Backend.load`.

        Raises:
            DeviceError: the plan cannot be built, or answers otherwise than ONNX Runtime.
            PlanUnavailableError: there is no plan to use, and the policy is not to build one.
        """
        key = self._key(model)
        with self._cache.building(name, key):
            found = self._cache.find(name, key)
            if isinstance(found, PlanFile) and "refused" in found.built:
                path = self._cache.path(name, key)
                raise DeviceError(f"{found.built['refused']} (kept in {path}; delete it to try again)")
            graph = None if isinstance(found, str) else self._open(name, key, found, model)
            if graph is None or isinstance(found, str):
                reason = found if isinstance(found, str) else "what was built cannot be used any more"
                if self._policy.missing != "build":
                    raise PlanUnavailableError(
                        f"{reason}; build it with `cir-export BUNDLE --tensorrt`, or let it be built with "
                        "CIR_MISSING_PLAN=build"
                    )
                found, graph = self._build(name, key, model, reason)
        self._plans[name] = {**found.built, "file": str(self._cache.path(name, key))}
        return graph

    def chains(self, graphs: Mapping[str, Graph], scorer: Scorer, names: tuple[str, ...]) -> Chains | None:
        """See `Backend.chains`."""
        encoder = graphs.get("reference") or graphs["image"]
        if not isinstance(scorer, CudaScorer) or not isinstance(encoder, PlanGraph):
            return None
        if scorer.streamed:
            # Chains run beside the scorer, on a stream and under a lock of their own; streamed rows pass
            # through buffers of which there is one set.
            return None
        return QueryChains(self._gpu, graphs, scorer, names)

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        return {
            "library": f"tensorrt {VERSION}",
            "gpu": self._gpu.name,
            "compute_capability": _capability(self._gpu),
            "cache": str(self._cache.folder),
            "limits": self._limits.to_json(),
            "plans": dict(self._plans),
        }

    def _key(self, model: Model) -> PlanKey:
        return PlanKey(
            graph=hashlib.sha256(model.data).hexdigest(),
            tensorrt=VERSION,
            compute_capability=_capability(self._gpu),
            gpu=self._gpu.name,
            precision=self._policy.precision,
            limits=self._limits.to_json(),
            flags=_FLAGS,
            l4t=self._l4t,
        )

    def _open(self, name: str, key: PlanKey, found: PlanFile, model: Model) -> Graph | None:
        """A cached plan, or what was chosen in its place, ready to run; None if it cannot be used.

        What this driver has never loaded is first tried in a process of its own.
        """
        chosen = found.built.get("placement", {}).get("chosen")
        if chosen == "cpu":
            return self._cpu.load(name, model)
        try:
            driver = driver_version()
            unknown = self._cache.checked_with(name, key) != driver
            graph: Graph
            if chosen == "kernel":
                graph = self._open_kernel(model, unknown)[0]
                if graph.version != found.built["kernel"]["version"]:
                    raise DeviceError("the recurrent kernel is another than the one that was measured")
            else:
                if unknown:
                    try_apart(name, found.plan)
                graph = PlanGraph(name, found.plan, self._gpu)
            if unknown:
                self._cache.note_checked(name, key, driver)
            return graph
        except DeviceError as error:
            _log.warning("the plan of the %s graph cannot be used: %s", name, error)
            return None

    def _build(self, name: str, key: PlanKey, model: Model, reason: str) -> tuple[PlanFile, Graph]:
        with self._gpu.active():
            free = self._gpu.free_bytes()
        workspace = workspace_for(free, self._gpu.integrated)
        before = self._cache.seconds_of_last_build(name, key)
        _log.warning(
            "building the plan of the %s graph for %s, once, which %s (%s)",
            name,
            self._gpu.name,
            "takes some minutes" if before is None else f"took {before:.0f} s the last time",
            reason,
        )
        with build_progress(f"building {name}") as report:
            built, seconds = build_apart(
                name, model, self._limits, workspace, self._cache.timings(key), report
            )
        self._cache.store_timings(key, built.timings)
        graph: Graph = PlanGraph(name, built.plan, self._gpu)
        cpu = self._cpu.load(name, model)
        facts: dict[str, Any] = {"seconds": seconds, "workspace": workspace, "driver": driver_version()}
        plan = built.plan
        candidates: dict[str, Graph] = {"cpu": cpu}
        refused: dict[str, str] = {}
        try:
            what = f"the plan of the {name} graph"
            most = self._limits.batch, self._limits.tokens
            facts["parity"] = check_parity(what, graph, cpu, _precision(model), *most, _INSTEAD)
            candidates["tensorrt"] = graph
        except DeviceError as error:
            if name != "text":
                # Whoever comes next shall not build for minutes to find out again.
                facts["refused"] = str(error)
                path = self._cache.store(name, key, PlanFile(key.to_json(), facts, b""))
                raise DeviceError(f"{error} (kept in {path}; delete it to try again)") from error
            # A recurrent encoder that TensorRT gets wrong runs elsewhere.
            _log.warning("the text encoder does not run in TensorRT: %s", error)
            refused["tensorrt"] = str(error)
        if name == "text":
            try:
                candidates["kernel"], facts["kernel"] = self._open_kernel(model, check=True)
            except CirError as error:
                refused["kernel"] = str(error)
                _log.info("the text encoder does not run in the recurrent kernel: %s", error)
            facts["placement"] = choose_placement(candidates, refused, self._limits.tokens)
            chosen = facts["placement"]["chosen"]
            graph = candidates[chosen]
            plan = plan if chosen == "tensorrt" else b""
        file = PlanFile(key.to_json(), facts, plan)
        path = self._cache.store(name, key, file)
        if graph is not cpu:
            self._cache.note_checked(name, key, facts["driver"])
        _log.warning("built the plan of the %s graph in %.0f s: %s", name, seconds, path)
        return file, graph

    def _open_kernel(self, model: Model, check: bool) -> tuple[RecurrentEncoder, dict[str, Any]]:
        """The text encoder as the recurrent kernel, and if asked for, how it compares with ONNX Runtime."""
        found = check_encoder_apart(model, self._limits.tokens, FURTHEST[_precision(model)]) if check else {}
        return open_encoder(model, self._gpu, self._limits.tokens), found


def _precision(model: Model) -> str:
    return computes_in(read_onnx_model(model.data, model.weights))


def driver_version() -> str:
    """The CUDA version of the driver, as it tells it, e.g. "12060"."""
    version = ctypes.c_int(0)
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return str(version.value)


def _capability(device: Device) -> str:
    return f"{device.architecture // 10}.{device.architecture % 10}"


def _batch_limit(integrated: bool) -> int:
    """Images in one run: $CIR_PLAN_BATCH, else 32, or 8 where host and GPU share a small memory."""
    chosen = os.environ.get("CIR_PLAN_BATCH")
    if chosen is None:
        return 8 if integrated else 32
    if not chosen.isdecimal() or not 2 <= int(chosen) <= 1024:
        raise UsageError(f"CIR_PLAN_BATCH is {shown(chosen)}; expected a whole number from 2 to 1024")
    return int(chosen)
