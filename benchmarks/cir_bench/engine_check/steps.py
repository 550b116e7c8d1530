"""The checks: each takes a subject, raises nothing that it expects, and says what it found."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cir_bench.engine_check.pictures import another
from cir_bench.engine_check.subject import K, Subject
from cir_bench.timing import interleave, ratio, summarise
from cir_infer.engine import Engine
from cir_infer.errors import CirError
from cir_infer.runtime.parity import FURTHEST, differences, fault_of
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.reference import ReferenceScorer

__all__ = ["LIMITS", "Limits", "cache", "captured", "drift", "latency", "parity", "threads"]


class Limits(NamedTuple):
    """The least that passes: the worst cosine between embeddings, and the agreement of the first ten."""

    cosine: float
    agreement: float

    @property
    def distance(self) -> float:
        """Of two embeddings, as a part of the first's length: that of two of one length at that cosine."""
        return math.sqrt(2 - 2 * self.cosine)


LIMITS = {
    "float32": Limits(0.9999, 0.99),
    "float16": Limits(0.9999, 0.99),
    "int8": Limits(0.995, 0.9),
}
"""By precision; those of `cir-export`'s gate, which a GPU's machine may lack the packages for."""

_FLAT_BYTES = 16 << 20
_AGREEING = 10


def parity(subject: Subject, images: int) -> dict[str, Any]:
    """Embeddings, value by value too, and the first ten answers against ONNX Runtime on the CPU."""
    ours, cpu = subject.searcher.engine, subject.cpu
    pictures = [another(subject.images[i % len(subject.images)], i) for i in range(images)]
    found, expected = ours.encode_images(pictures), cpu.encode_images(pictures)
    cosines = _cosines(found, expected)
    result: dict[str, Any] = {
        "images": images,
        "worst_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
    }
    least = LIMITS[cpu.manifest.precision]
    faults = [_fault(found, expected, cpu)]
    passed = result["worst_cosine"] >= least.cosine
    if ours.needs_text:
        texts = subject.texts[:64]
        pair = ours.encode_texts(texts), cpu.encode_texts(texts)
        result["worst_text_cosine"] = float(_cosines(*pair).min())
        passed &= result["worst_text_cosine"] >= least.cosine
        faults.append(_fault(*pair, cpu))
    result["faults"] = [fault for fault in faults if fault is not None]
    passed &= not result["faults"]
    result["top10_agreement"] = _agreement(subject, found)
    return {"passed": bool(passed and result["top10_agreement"] >= least.agreement), **result}


def _fault(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32], engine: Engine) -> str | None:
    """What is wrong with embeddings beside those of the CPU, as it is asked of a plan before it is used."""
    fault = fault_of(differences(expected, found), FURTHEST[engine.manifest.precision])
    return None if fault is None else fault[1]


def drift(subject: Subject, exact: Subject, images: int) -> dict[str, Any]:
    """Embeddings of a lower precision against float32's, both on the device."""
    pictures = [another(subject.images[i % len(subject.images)], i) for i in range(images)]
    found = subject.searcher.engine.encode_images(pictures)
    expected = exact.searcher.engine.encode_images(pictures)
    worst = float(_cosines(found, expected).min())
    distance = float(differences(expected, found).lengths.max())
    agreement = _neighbours(found, expected)
    least = LIMITS[subject.cpu.manifest.precision]
    near = worst >= least.cosine and distance <= least.distance
    return {
        "passed": near and agreement >= least.agreement,
        "images": images,
        "worst_cosine": worst,
        "worst_distance": distance,
        "top10_agreement": agreement,
    }


def _neighbours(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """The share of the ten nearest images of each image on which two sets of embeddings agree."""
    nearest = []
    for rows in (a, b):
        products = rows @ rows.T
        np.fill_diagonal(products, -np.inf)
        nearest.append(np.argsort(-products, 1, kind="stable")[:, :_AGREEING])
    shared = [len(set(x) & set(y)) for x, y in zip(*(n.tolist() for n in nearest), strict=True)]
    return float(np.mean(shared)) / min(_AGREEING, len(a) - 1)


def _agreement(subject: Subject, rows: npt.NDArray[np.float32]) -> float:
    """The share of the first ten that both sides answer, each with its own embeddings of 64 queries."""
    answers = []
    count = min(64, len(subject.images))
    for engine in (subject.searcher.engine, subject.cpu):
        reference = (
            engine.encode_references(subject.images[:count], count) if engine.needs_reference else None
        )
        text = engine.encode_texts(subject.texts[:count]) if engine.needs_text else None
        answers.append(ReferenceScorer(Rows.of(rows)).topk(engine.compose(reference, text), _AGREEING).rows)
    shared = [len(set(a) & set(b)) for a, b in zip(*(a.tolist() for a in answers), strict=True)]
    return float(np.mean(shared)) / min(_AGREEING, len(rows))


def cache(subject: Subject, device: str = "tensorrt") -> dict[str, Any]:
    """A second engine builds nothing; a damaged plan is built again; one of another kind is named."""
    facts = subject.searcher.engine.describe()["backend"]
    files = {name: Path(plan["file"]) for name, plan in facts["plans"].items()}
    before = {name: path.read_bytes() for name, path in files.items()}
    begun = time.perf_counter()
    Engine(subject.bundle, device=device, missing_plan="refuse")
    result: dict[str, Any] = {"open_seconds": time.perf_counter() - begun}
    hit = all(path.read_bytes() == before[name] for name, path in files.items())
    with tempfile.TemporaryDirectory() as folder, _environment(CIR_PLAN_CACHE=folder):
        for path in Path(facts["cache"]).iterdir():
            shutil.copy2(path, folder)
        damaged = Path(folder) / files["compose"].name  # the smallest, so the quickest to build
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        result["damage"] = _refusal(subject.bundle, device)
        rebuilt = Engine(subject.bundle, device=device, missing_plan="build")
        again = rebuilt.describe()["backend"]["plans"]["compose"]["file"] == str(damaged)
        with _environment(CIR_PLAN_BATCH="3"):
            result["mismatch"] = _refusal(subject.bundle, device)
    passed = hit and again and "damaged" in result["damage"] and "limits" in result["mismatch"]
    return {"passed": bool(passed), **result}


def _refusal(bundle: Path, device: str) -> str:
    try:
        Engine(bundle, device=device, missing_plan="refuse")
    except CirError as error:
        return str(error)
    return "accepted"


def captured(subject: Subject, seconds: float) -> dict[str, Any]:
    """The captured chain against graph by graph and scorer: same answers, and how many times faster."""
    searcher = subject.searcher
    engine, scorer = searcher.engine, searcher.scorer
    chains = engine.chains(scorer)
    if chains is None:
        return {"passed": False, "skipped": "graphs and scorer do not share a GPU"}
    prepared = [engine.prepare(image) for image in subject.images[:16]]
    texts = engine.encode_texts(subject.texts[:16]) if engine.needs_text else None

    def replay(i: int) -> Any:
        image = prepared[i] if engine.needs_reference else None
        return chains.topk(image, None, None if texts is None else texts[i], K, None)

    def stepwise(i: int) -> Any:
        reference = None
        if engine.needs_reference and engine.row_is_reference:
            reference = engine.encode_prepared(prepared[i][None])
        elif engine.needs_reference:
            reference = engine.encode_references([subject.images[i]])
        return scorer.topk(engine.compose(reference, None if texts is None else texts[i : i + 1]), K)

    largest = 0.0
    same = True
    furthest = FURTHEST[subject.cpu.manifest.precision]
    for i in range(len(prepared)):
        for _ in range(2):  # the first one captures
            found, expected = replay(i), stepwise(i)
            largest = max(largest, float(np.abs(found.scores - expected.scores).max()))
            same &= len(set(found.rows[0].tolist()) & set(expected.rows[0].tolist())) >= K - 1
            same &= fault_of(differences(expected.scores, found.scores), furthest) is None
    taken = interleave({"replay": lambda: replay(0), "stepwise": lambda: stepwise(0)}, seconds=seconds)
    described = chains.describe()["chains"]
    return {
        "passed": bool(same and all(chain["cuda_graph"] for chain in described)),
        "largest_score_difference": largest,
        "chains": described,
        "replay_ms": summarise(taken["replay"]),
        "stepwise_over_replay": ratio(taken["stepwise"], taken["replay"]),
    }


def threads(
    subject: Subject, queries: int, workers: int = 8, free_bytes: Callable[[], int] | None = None
) -> dict[str, Any]:
    """Many queries from several threads: the answers of one thread, and memory as it was."""
    searcher = subject.searcher
    count = min(64, len(subject.images))

    def ask(i: int) -> list[str]:
        return [hit.id for hit in searcher.query(subject.images[i % count], subject.texts[i % count], K)]

    searcher.warm_up(K)
    expected = [ask(i) for i in range(count)]
    before = free_bytes() if free_bytes else 0
    begun = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(ask, range(queries)))
    seconds = time.perf_counter() - begun
    grown = before - free_bytes() if free_bytes else 0
    different = sum(answer != expected[i % count] for i, answer in enumerate(answers))
    return {
        "passed": different == 0 and grown <= _FLAT_BYTES,
        "queries": queries,
        "threads": workers,
        "different_answers": different,
        "memory_grown_bytes": grown,
        "queries_per_second": queries / seconds,
    }


def latency(
    subject: Subject, seconds: float, others: dict[str, Callable[[], object]] | None = None
) -> dict[str, Any]:
    """The table: a query and its parts, one at a time, by turns with whatever it is compared with."""
    searcher, image, text = subject.searcher, subject.images[0], subject.texts[0]
    engine, scorer = searcher.engine, searcher.scorer
    searcher.warm_up(K)
    prepared = engine.prepare(image)[None]
    reference = engine.encode_references([image]) if engine.needs_reference else None
    embedded = engine.encode_texts([text]) if engine.needs_text else None
    terms = engine.compose(reference, embedded)
    calls: dict[str, Callable[[], object]] = {
        "query": lambda: searcher.query(image, text, K),
        "prepare": lambda: engine.prepare(image),
        "image encoder": lambda: engine.encode_prepared(prepared),
        "compose": lambda: engine.compose(reference, embedded),
        "scoring": lambda: scorer.topk(terms, K),
    }
    if engine.needs_text:
        calls["text encoder"] = lambda: engine.encode_texts([text])
        chains = engine.chains(scorer)
        if chains is not None and engine.needs_reference and embedded is not None:
            ready = embedded[0]
            calls["query, text encoded before"] = lambda: chains.topk(
                engine.prepare(image), None, ready, K, None
            )
    if engine.row_is_reference and engine.needs_reference:
        hit = searcher.item("0")
        calls["refined hit"] = lambda: searcher.query(hit, text, K)
    taken = interleave({**calls, **(others or {})}, seconds=seconds)
    result: dict[str, Any] = {"passed": True, "stages_ms": {name: summarise(taken[name]) for name in taken}}
    result["ratios"] = {f"{name} over query": ratio(taken[name], taken["query"]) for name in others or {}}
    if "query, text encoded before" in taken:
        result["ratios"]["query over query with its text encoded before"] = ratio(
            taken["query"], taken["query, text encoded before"]
        )
    if "refined hit" in taken and "text encoder" in taken:
        result["ratios"]["refined hit over scoring and text encoder"] = ratio(
            taken["refined hit"], taken["scoring"] + taken["text encoder"]
        )
    return result


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosines: npt.NDArray[np.float64] = (a * b).sum(1) / (
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    )
    return cosines


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
