"""The stages of a query, timed one after the other on what flows between them.

The runtime's public steps are the stages, so nothing in the query path knows that it is measured. Next
to them, in the same round, the whole query is timed as a user calls it: there the text branch runs beside
the image branch, so it may take less than the sum.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from cir_bench.latency.workload import Workload
from cir_bench.timing import Milliseconds, quiet_collector
from cir_infer.bundle.manifest import PixelInput
from cir_infer.hits import Hit
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.preprocess import decode, prepare, preprocess
from cir_infer.inputs.texts import Text
from cir_infer.runtime.graph import Array
from cir_infer.searcher import Searcher

__all__ = ["STAGES", "time_stages"]

STAGES = {
    "decode": "read and decode the image",
    "preprocess": "pad, resize, crop",
    "image": "image encoder, transfers included",
    "host-to-device": "copy of the prepared image, alone",
    "image on device": "image encoder between the copies",
    "device-to-host": "copy of the embedding, alone",
    "reference": "decode, preprocess and the query side's own image encoder",
    "text": "tokenizer and text encoder, beside the image",
    "compose": "query terms",
    "score": "scores of all rows and top-k, fused",
    "lookup": "ids and metadata of the hits",
    "query": "end to end: image and text to hits",
    "refine": "end to end: hit and text to hits, no image",
}
"""What a report calls each, and what it holds."""

T = TypeVar("T")


class _Stopwatch:
    """Collects the durations of named steps, round by round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, call: Callable[[], T]) -> T:
        before = time.perf_counter()
        result = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - before)
        return result


def time_stages(
    searcher: Searcher, workload: Workload, k: int, seconds: float, warm_up: int = 5, at_least: int = 30
) -> dict[str, Milliseconds]:
    """Time every stage and both whole queries, one query after the other.

    Args:
        searcher: opened.
        workload: what to ask; queries take turns.
        k: hits a query.
        seconds: how long to go on.
        warm_up: rounds made first and not counted.
        at_least: rounds to make however long they take.

    Returns:
        float64 (rounds,) milliseconds by the names of `STAGES`; stages that the system lacks are absent.
    """
    queries = list(zip(workload.images, workload.texts, strict=True))
    for number in range(warm_up):
        _one_round(searcher, *queries[number % len(queries)], k, _Stopwatch())
    watch = _Stopwatch()
    with quiet_collector():
        start, rounds = time.perf_counter(), 0
        while rounds < at_least or time.perf_counter() - start < seconds:
            _one_round(searcher, *queries[rounds % len(queries)], k, watch)
            rounds += 1
    return {name: 1e3 * np.asarray(values) for name, values in watch.seconds.items()}


def _one_round(searcher: Searcher, image: ImageLike, text: Text, k: int, watch: _Stopwatch) -> None:
    engine, snapshot = searcher.engine, searcher.gallery.snapshot()
    asked_text = text if engine.needs_text else None
    asked_image = image if engine.needs_reference else None
    hits = watch.time("query", lambda: searcher.query(asked_image, asked_text, k))
    if engine.needs_reference and engine.row_is_reference:
        hit: Hit = hits[len(hits) // 2]
        watch.time("refine", lambda: searcher.query(hit, asked_text, k))

    reference = words = None
    if engine.needs_reference:
        spec = engine.manifest.image
        if isinstance(spec, PixelInput):
            decoded = watch.time("decode", lambda: decode(image, spec))
            prepared: Array = watch.time("preprocess", lambda: prepare(decoded, spec))
        else:
            prepared = watch.time("preprocess", lambda: preprocess(image, spec))
        reference = watch.time("image", lambda: engine.encode_prepared(prepared[None]))
        if not engine.row_is_reference:
            # The query side has an encoder of its own, behind the same preprocessing.
            reference = watch.time("reference", lambda: engine.encode_references([image], 1))
    if engine.needs_text:
        words = watch.time("text", lambda: engine.encode_texts([text]))
    terms = watch.time("compose", lambda: engine.compose(reference, words))
    scorer = searcher.scorer
    top = watch.time("score", lambda: scorer.topk(terms, min(k, snapshot.count), snapshot.live))
    rows = top.rows[0]
    watch.time("lookup", lambda: snapshot.items(rows))
