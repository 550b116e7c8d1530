"""The text encoder where it can run: is the recurrent kernel right, and what does a text take in a place?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from cir_bench.engine_check.subject import Subject
from cir_bench.timing import interleave, summarise
from cir_infer.bundle import Bundle
from cir_infer.bundle.onnx_model import read_onnx_model
from cir_infer.runtime.parity import FURTHEST, computes_in
from cir_infer.runtime.samples import sample_feeds

__all__ = ["text_placements"]

_LENGTHS = (4, 8, 20, 64)


def text_placements(subject: Subject, seconds: float) -> dict[str, Any]:
    """One text in each place, by turns: ONNX Runtime on the CPU, and the recurrent kernel.

    TensorRT's own time is in what building has recorded, under `chosen`: its plan is not kept where another
    place was faster.

    Args:
        subject: with a system that reads text, on a GPU.
        seconds: to measure for, all lengths together.

    Raises:
        DeviceError: the kernel answers otherwise than ONNX Runtime, or fails.
    """
    from cir_infer.gpu.context import open_gpu
    from cir_infer.runtime.onnx import OnnxBackend
    from cir_infer.runtime.recurrent.opening import check_encoder, open_encoder
    from cir_infer.runtime.recurrent.text_graph import NoKernelError

    engine, model = subject.searcher.engine, Bundle(subject.bundle).graph("text")
    assert engine.manifest.text is not None
    longest = engine.manifest.text.max_tokens
    cpu = OnnxBackend("cpu").load("text", model)
    recorded = engine.describe()["backend"].get("plans", {}).get("text", {})
    result: dict[str, Any] = {"passed": True, "chosen": recorded.get("placement")}
    places: dict[str, Callable[[Any], object]] = {"cpu": cpu.run}
    try:
        encoder = open_encoder(model, open_gpu(0), longest)
    except NoKernelError as error:
        result["kernel"] = str(error)
    else:
        furthest = FURTHEST[computes_in(read_onnx_model(model.data, model.weights))]
        result["kernel"] = {**check_encoder(encoder, cpu, longest, furthest), **asdict(encoder.placed)}
        places["kernel"] = encoder.run
    lengths = [length for length in _LENGTHS if length <= longest]
    result["ms"] = {}
    for length in lengths:
        feeds = sample_feeds(cpu.inputs, 1, length)
        calls = {name: partial(run, feeds) for name, run in places.items()}
        taken = interleave(calls, seconds=seconds / len(lengths))
        result["ms"][str(length)] = {name: summarise(taken[name]) for name in taken}
    return result
