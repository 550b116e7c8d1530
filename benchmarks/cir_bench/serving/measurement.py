"""Measures a service: what HTTP adds, what it does at its limit, and how that compares."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cir_bench.latency.workload import Workload, draw_workload
from cir_bench.serving.load import Job, raw_request
from cir_bench.serving.served import (
    Service,
    Told,
    answer_to,
    asked,
    bare_service,
    minimal_service,
    own_service,
)
from cir_bench.timing import percentile, summarise
from cir_infer.bundle import Bundle
from cir_infer.engine import Engine
from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.hits import Hit
from cir_infer.processes.cpus import available_cpus
from cir_infer.searcher import Searcher

__all__ = ["enlarged", "measure_serving"]

_K = 10
_OVERLOAD = 4.0
_QUERIES = 64
_WAYS: dict[str, tuple[str, ...]] = {
    "batched": (),
    "one batch at a time": ("--batches=1",),
    "one by one": ("--max-batch=1",),
    "workers": (f"--workers={min(available_cpus(), 8)}",),
}
"""Flags of each way to serve. Workers are processes, of which each has an interpreter to itself."""
_BOUNDARY = "cir-bench-5f0d1c"

Tell = Callable[[str], None]


def enlarged(gallery: str, path: Path, rows: int, seed: int = 0) -> str:
    """A gallery of so many rows: those of another, then the same again with a little noise."""
    random = np.random.default_rng(seed)
    with Gallery.open(gallery, read_only=True) as opened:
        snapshot = opened.snapshot()
        numbers = snapshot.live_rows()
        vectors, items = snapshot.rows.take(numbers), snapshot.items(numbers)
        fingerprint = snapshot.fingerprint
    many: list[Any] = []
    ids: list[str] = []
    sources: list[str | None] = []
    for number in range(rows):
        at, copy = number % len(items), number // len(items)
        row = vectors[at]
        if copy:
            row = row + random.normal(0, 0.02 * float(np.abs(row).mean()), row.shape).astype(np.float32)
        many.append(row)
        ids.append(items[at].id if not copy else f"{items[at].id}~{copy}")
        sources.append(items[at].source)
    Gallery.from_arrays(
        path, ids=ids, vectors=np.stack(many), sources=sources, fingerprint=fingerprint
    ).close()
    return str(path)


def measure_serving(
    bundle: str,
    gallery: str,
    model: str | None,
    threads: int,
    clients: Sequence[int],
    seconds: float,
    rounds: int,
    tell: Tell,
    images: Path | None = None,
) -> dict[str, Any]:
    """Everything, one after the other.

    Args:
        bundle: path.
        gallery: path.
        model: what the bundle was exported from, for the handler to compare with; None leaves that out.
        threads: of our engine and of PyTorch.
        clients: numbers of clients that ask as fast as they are answered.
        seconds: of each load.
        rounds: queries of which the overhead is the median.
        tell: called with what is being done.
        images: a folder of references; those of the gallery otherwise.
    """
    with Gallery.open(gallery, read_only=True) as opened:
        snapshot = opened.snapshot()
        workload = draw_workload(Bundle(bundle), snapshot, images)
        ids = snapshot.ids(snapshot.live_rows()[:_QUERIES])
    queries = {"image": _image_requests(workload), "refinement": _refinements(workload, ids)}
    report: dict[str, Any] = {
        "settings": {
            "threads": threads,
            "seconds": seconds,
            "rounds": rounds,
            "k": _K,
            "workload": workload.source,
        }
    }
    tell("what HTTP adds")
    report["overhead"] = {
        name: _overhead(bundle, gallery, threads, name, requests, workload, ids, rounds)
        for name, requests in queries.items()
    }
    tell("query_batch alone")
    report["query_batch"] = {
        name: _batch_rate(bundle, gallery, threads, name, workload, ids, seconds) for name in queries
    }
    for title, flags in _WAYS.items():
        with own_service(bundle, gallery, threads, "--queue=256", "--per-key=1024", *flags) as service:
            report[title] = {
                name: _closed(service, requests, clients, seconds, partial(_tell_clients, tell, title, name))
                for name, requests in queries.items()
            }
            if title == "batched":
                answers = {name: answer_to(requests[0], service.port) for name, requests in queries.items()}
    tell("bare HTTP")
    report["bare HTTP"] = {}
    for name, requests in queries.items():
        with bare_service(answers[name]) as service:
            # As many clients as the service was fastest with, as fast as they can.
            loads = _closed(service, requests, [_busiest(report["batched"][name])], seconds, lambda _: None)
            report["bare HTTP"][name] = loads
    with own_service(bundle, gallery, threads, "--per-key=1024", "--concurrency=1024") as service:
        tell("overload")
        report["overload"] = {
            name: _overload(service, requests, report["batched"][name], seconds)
            for name, requests in queries.items()
        }
    if model is not None:
        with minimal_service(model, gallery, threads) as service:
            report["minimal"] = {
                name: _closed(
                    service, requests, clients, seconds, partial(_tell_clients, tell, "minimal", name)
                )
                for name, requests in queries.items()
            }
    report["reach"] = _reach(report)
    return report


# ---- requests


def _image_requests(workload: Workload) -> list[bytes]:
    made = []
    for image, text in zip(workload.images[:_QUERIES], workload.texts, strict=False):
        data = _bytes(image)
        parts = [
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in (("text", _plain(text)), ("k", str(_K)))
        ]
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
        parts.append(head.encode() + b"Content-Type: image/png\r\n\r\n" + data + b"\r\n")
        body = b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()
        made.append(raw_request("/v1/search", f"multipart/form-data; boundary={_BOUNDARY}", body))
    if not made:
        raise UsageError("there are no images to ask with; give --images FOLDER")
    return made


def _refinements(workload: Workload, ids: Sequence[str]) -> list[bytes]:
    return [
        raw_request(
            "/v1/search",
            "application/json",
            json.dumps({"item": item, "text": _plain(text), "k": _K}).encode(),
        )
        for item, text in zip(ids, workload.texts, strict=False)
    ]


def _bytes(image: Any) -> bytes:
    """An image as a client has it, so that both ways begin with the same."""
    return image if isinstance(image, bytes) else Path(str(image)).read_bytes()


def _plain(text: Any) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _references(name: str, workload: Workload, ids: Sequence[str]) -> list[tuple[Any, str]]:
    references: list[Any] = [Hit(item) for item in ids]
    if name == "image":
        references = [_bytes(image) for image in workload.images[:_QUERIES]]
    return [(image, _plain(text)) for image, text in zip(references[:_QUERIES], workload.texts, strict=False)]


# ---- measurements


def _overhead(
    bundle: str,
    gallery: str,
    threads: int,
    name: str,
    requests: Sequence[bytes],
    workload: Workload,
    ids: Sequence[str],
    rounds: int,
) -> dict[str, Any]:
    """One query at a time, over HTTP and in Python in turn, so that both meet the same machine."""
    part = max(1, rounds // 5)
    asked_for, direct = _references(name, workload, ids), []
    over: list[float] = []
    engine = Engine(bundle, threads=threads)
    with own_service(bundle, gallery, threads) as service, Searcher(engine, gallery) as searcher:
        searcher.warm_up(_K)
        one = Job(service.port, requests, 1, 1e9)
        for start in range(0, rounds + part, part):
            kept = start > 0  # the first part warms both
            for number in range(start, start + part):
                image, text = asked_for[number % len(asked_for)]
                begun = time.perf_counter()
                searcher.query(image, text, _K)
                if kept:
                    direct.append(1000 * (time.perf_counter() - begun))
            told = asked(Job(one.port, requests, 1, 0.02 * part, None))
            over += [ms for status, ms, _ in told.answers if status == 200] if kept else []
    engine.close()
    median = (percentile(over, 50), percentile(direct, 50))
    return {"http": summarise(over), "direct": summarise(direct), "added_ms": median[0] - median[1]}


def _batch_rate(
    bundle: str, gallery: str, threads: int, name: str, workload: Workload, ids: Sequence[str], seconds: float
) -> dict[str, float]:
    pairs = _references(name, workload, ids)
    with Engine(bundle, threads=threads) as engine, Searcher(engine, gallery) as searcher:
        images, texts = [image for image, _ in pairs], [text for _, text in pairs]
        list(searcher.query_batch(images, texts, k=_K))
        begun, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begun < seconds:
            count += len(list(searcher.query_batch(images, texts, k=_K)))
        took, cpu = time.perf_counter() - begun, time.process_time() - cpu
        return {"per_second": count / took, "cpu_ms": 1000 * cpu / count}


def _tell_clients(tell: Tell, title: str, name: str, clients: int) -> None:
    tell(f"{title}, {name}, {clients} clients")


def _closed(
    service: Service,
    requests: Sequence[bytes],
    clients: Sequence[int],
    seconds: float,
    tell: Callable[[int], None],
) -> dict[str, Any]:
    """Clients that ask again once they are answered."""
    asked(Job(service.port, requests, 2, min(1.0, seconds)))
    found = {}
    for count in clients:
        tell(count)
        found[str(count)] = _measured(service, Job(service.port, requests, count, seconds))
    return found


def _overload(
    service: Service, requests: Sequence[bytes], alone: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """Four times as many requests as can be answered, from clients that do not wait; and exactly as many."""
    rate = max(part["answered_per_second"] for part in alone.values())
    found = {"capacity_per_second": rate}
    for title, times in (("at capacity", 1.0), ("at four times capacity", _OVERLOAD)):
        found[title] = _measured(service, Job(service.port, requests, 512, seconds, rate * times))
    return found


def _measured(service: Service, job: Job) -> dict[str, Any]:
    before = service.cpu()
    told = asked(job)
    return _summary(told, service.cpu() - before)


def _summary(told: Told, cpu: float) -> dict[str, Any]:
    """Args: what was told; seconds of processor time that the service took."""
    answers = told.answers
    good = [ms for status, ms, _ in answers if status == 200]
    busy = [ms for status, ms, _ in answers if status in (429, 503)]
    length = max((at for _, _, at in answers), default=0.0)
    return {
        "answered": len(good),
        "refused": len(busy),
        "failed": len(answers) - len(good) - len(busy),
        "answered_per_second": len(good) / length if length else 0.0,
        "cpu_ms_an_answer": 1000 * cpu / len(good) if good else None,
        "cpu_ms_of_asking": 1000 * told.cpu / len(answers) if answers else None,
        "latency": summarise(good) if good else None,
        "refusal": summarise(busy) if busy else None,
    }


def _reach(report: dict[str, Any]) -> dict[str, Any]:
    """The figures that the service is held to."""
    found: dict[str, Any] = {}
    for name in ("image", "refinement"):
        best = {
            title: max(part["answered_per_second"] for part in report[title][name].values())
            for title in (*_WAYS, "minimal")
            if title in report
        }
        over, alone = report["overload"][name], report["query_batch"][name]
        busiest = report["batched"][name][str(_busiest(report["batched"][name]))]
        spent = busiest["cpu_ms_an_answer"]
        (bare,) = report["bare HTTP"][name].values()
        http = bare["cpu_ms_an_answer"] + bare["cpu_ms_of_asking"]
        found[name] = {
            "added_ms": report["overhead"][name]["added_ms"],
            "share_of_query_batch": best["batched"] / alone["per_second"],
            "share_of_query_batch_with_workers": best["workers"] / alone["per_second"],
            # By processor time. The load is made on the same processors: without its share, and with it.
            "share_by_processor_time": _over(alone["cpu_ms"], spent or 0.0),
            "share_by_processor_time_with_the_load": _over(
                alone["cpu_ms"], (spent or 0.0) + busiest["cpu_ms_of_asking"]
            ),
            # Of a service that does nothing but compute, and read and write HTTP by uvicorn and httptools.
            "ceiling_by_processor_time_with_the_load": _over(alone["cpu_ms"], alone["cpu_ms"] + http),
            "processors_that_query_batch_uses": alone["per_second"] * alone["cpu_ms"] / 1000,
            "batched_over_one_by_one": best["batched"] / best["one by one"],
            "p99_at_overload_over_at_capacity": _p99(over["at four times capacity"])
            / _p99(over["at capacity"]),
            **({"times_minimal": best["batched"] / best["minimal"]} if best.get("minimal") else {}),
        }
    return found


def _busiest(parts: dict[str, Any]) -> int:
    """With how many clients most was answered."""
    return int(max(parts, key=lambda clients: float(parts[clients]["answered_per_second"])))


def _over(above: float, below: float) -> float:
    return above / below if below else float("nan")


def _p99(part: dict[str, Any]) -> float:
    return float(part["latency"]["p99_ms"]) if part["latency"] else float("nan")
