"""The same queries on several devices, by turns in one run: what their ratio is on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.latency.workload import Workload
from cir_bench.timing import interleave, ratio, summarise
from cir_infer.engine import Engine
from cir_infer.runtime.graph import Array
from cir_infer.runtime.parity import differences
from cir_infer.searcher import Searcher

__all__ = ["compare_devices"]


def compare_devices(
    bundle: Path,
    gallery: Path,
    devices: Sequence[str],
    workload: Workload,
    k: int,
    threads: int | None,
    seconds: float,
) -> dict[str, Any]:
    """Time queries and encoders on each device, and compare their answers first.

    Args:
        bundle: its path.
        gallery: its path.
        devices: names as for `Engine`; ratios are of the first.
        workload: what to ask; queries take turns.
        k: hits a query.
        threads: as for `Engine`.
        seconds: how long to go on, for all devices together.

    Returns:
        By device: `library`; `answers`, the worst cosine of an image's embedding with the first device's and
        the share of queries with the same first k; and for "query", "image" and "text" times in ms with
        `of_first`, the first device's time over this one's, median and middle 80% of the rounds.

    Raises:
        DeviceError: one of them cannot be used.
    """
    searchers = {device: Searcher(Engine(bundle, device, threads), gallery) for device in devices}
    calls = {device: _calls(searcher, workload, k) for device, searcher in searchers.items()}
    answers = {device: _answers(searcher, workload, k) for device, searcher in searchers.items()}
    found: dict[str, Any] = {
        device: {
            "library": searcher.engine.describe()["backend"]["library"],
            "answers": _compared(answers[devices[0]], answers[device]),
        }
        for device, searcher in searchers.items()
    }
    parts = calls[devices[0]]
    for part in parts:
        taken = interleave({device: calls[device][part] for device in devices}, seconds=seconds / len(parts))
        for device in devices:
            of_first = ratio(taken[devices[0]], taken[device])
            found[device][part] = {**summarise(taken[device]), "of_first": of_first}
    return found


def _calls(searcher: Searcher, workload: Workload, k: int) -> dict[str, Callable[[], object]]:
    """What is timed, each a call that takes the next query."""
    engine = searcher.engine
    turn = {"query": 0, "image": 0, "text": 0}
    calls: dict[str, Callable[[], object]] = {}

    def next_of(part: str) -> int:
        turn[part] += 1
        return turn[part] % len(workload.texts)

    def query() -> object:
        at = next_of("query")
        image = workload.images[at] if engine.needs_reference else None
        return searcher.query(image, workload.texts[at] if engine.needs_text else None, k)

    calls["query"] = query
    if engine.needs_reference:
        prepared = [engine.prepare(image)[None] for image in workload.images[:8]]
        calls["image"] = lambda: engine.encode_prepared(prepared[next_of("image") % len(prepared)])
    if engine.needs_text:
        calls["text"] = lambda: engine.encode_texts([workload.texts[next_of("text")]])
    return calls


def _answers(searcher: Searcher, workload: Workload, k: int) -> tuple[Array | None, list[list[str]]]:
    engine = searcher.engine
    rows = engine.encode_images(workload.images[:8]) if engine.needs_reference else None
    images = workload.images if engine.needs_reference else [None] * len(workload.texts)
    texts = workload.texts if engine.needs_text else [None] * len(images)
    asked = list(zip(images, texts, strict=True))[:32]
    return rows, [searcher.query(image, text, k).ids for image, text in asked]


def _compared(
    first: tuple[Array | None, list[list[str]]], other: tuple[Array | None, list[list[str]]]
) -> dict[str, Any]:
    same = float(np.mean([a == b for a, b in zip(first[1], other[1], strict=True)]))
    if first[0] is None or other[0] is None:
        near: dict[str, Any] = {"cosine_worst": None, "furthest": None}
    else:
        found = differences(first[0], other[0])  # a cosine alone sees no length
        furthest = float(np.maximum(found.lengths, found.values).max())
        near = {"cosine_worst": float(found.cosines.min()), "furthest": furthest}
    return {**near, "same_first_k": same, "queries": len(first[1])}
