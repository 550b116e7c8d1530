"""The replay: encode everything, score every query against its category's gallery, both ways."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cir_bench import trust
from cir_bench.machine import stamp
from cir_bench.seeded_models import seeded_model, write_seeded_bundle
from cir_bench.sensors import Sensors, summarise_readings
from cir_bench.table7.costs import SYSTEMS, added_cost, encoder_cost, reference_shape
from cir_bench.table7.paper import PAPER
from cir_bench.table7.workload import Category, fashioniq_shaped, real_fashioniq
from cir_bench.torch_scoring import literal_scores, ranked
from cir_infer.console.progress import progress_bar
from cir_infer.engine import Engine
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer

if TYPE_CHECKING:
    from cir_export.models import RetrievalModel

__all__ = ["Settings", "measure_table7"]

_TEXT = 512
_BATCH = 32
_BLOCK = 256
_K = 50
_OURS = 8
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """How to replay.

    Attributes:
        folder: where a bundle a system is kept between runs.
        root: FashionIQ; None takes generated images and texts of its shape.
        images: encode so many images and scale to all; None encodes all.
        queries: loop the authors' way over so many queries a category and scale; None loops over all.
        device: as for `Engine`.
        threads: CPU threads for all alike; None takes every core.
    """

    folder: Path
    root: Path | None = None
    images: int | None = 512
    queries: int | None = 64
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class _Timed:
    """Seconds for everything, and how many of how many were really done."""

    seconds: float
    done: int
    of: int

    def plain(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "measured": self.done, "of": self.of, "scaled": self.done < self.of}


def measure_table7(settings: Settings) -> dict[str, Any]:
    """Replay the table.

    Raises:
        CirError: the data set is not there, or the models cannot be exported.
    """
    import torch

    head = stamp()
    threads = settings.threads or int(head["machine"]["cpu"]["cores"])
    torch.set_num_threads(threads)
    categories = fashioniq_shaped() if settings.root is None else real_fashioniq(settings.root)
    bundles = {name: _bundle(settings.folder, name) for name in SYSTEMS}
    with Sensors() as sensors:
        engine = Engine(bundles["artemis"], settings.device, threads)
        encoders = _time_encoders(engine, categories, settings.images)
        systems = {}
        for name in SYSTEMS:
            model = seeded_model(name).model
            systems[name] = _time_system(
                model, Engine(bundles[name], settings.device, threads), categories, settings.queries
            )
    readings = summarise_readings(sensors.readings)
    costs, (macs, parameters) = {name: added_cost(name) for name in bundles}, encoder_cost()
    total = encoders["images"].seconds + encoders["texts"].seconds
    return {
        "kind": "table7",
        **head,
        "settings": {
            "data": "generated, of FashionIQ's shape" if settings.root is None else "FashionIQ validation",
            "device": engine.describe()["device"],
            "threads": threads,
            "galleries": {category.name: len(category.images) for category in categories},
            "queries": {category.name: len(category.texts) for category in categories},
        },
        "encoders": {
            "giga_macs": macs / 1e9,
            "mega_parameters": parameters / 1e6,
            "images": encoders["images"].plain(),
            "texts": encoders["texts"].plain(),
            "seconds": total,
        },
        "systems": {
            name: {
                "giga_macs": costs[name][0] / 1e9,
                "mega_parameters": costs[name][1] / 1e6,
                "scorer": timed["scorer"],
                "authors": timed["authors"].plain(),
                "ours": timed["ours"].plain(),
                "authors_over_ours": timed["authors"].seconds / timed["ours"].seconds,
                "same_first": timed["same_first"],
            }
            for name, timed in systems.items()
        },
        "paper": {name: row._asdict() for name, row in PAPER.items()},
        "sensors": readings,
        "doubts": [*trust.doubts_about_machine(readings), *_scaled(encoders, systems)],
    }


def _bundle(folder: Path, system: str) -> Path:
    path = folder / f"table7-{system}-resnet50-lstm.cir"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_seeded_bundle(path, system)
    return path


def _time_encoders(engine: Engine, categories: Sequence[Category], limit: int | None) -> dict[str, _Timed]:
    images = [image for category in categories for image in category.images]
    texts = [text for category in categories for text in category.texts]
    some = images if limit is None else images[:limit]
    engine.encode_images(some[:_BATCH], _BATCH)
    return {
        "images": _scaled_time(
            lambda: engine.encode_images(some, _BATCH, progress=True), len(some), len(images)
        ),
        "texts": _scaled_time(lambda: engine.encode_texts(texts, _BATCH), len(texts), len(texts)),
    }


def _time_system(
    model: RetrievalModel, engine: Engine, categories: Sequence[Category], limit: int | None
) -> dict[str, Any]:
    """Composition, scoring and ranking of every query; embeddings of random directions, all given.

    Where a composition reads maps, a batch of them is given again and again: all would be gigabytes. It also
    costs up to 25 tera multiply-accumulates in all (CoSMo), so with a limit ours is scaled too, from eight
    times as many queries.
    """
    authors, ours, done, composed, every, same, name = 0.0, 0.0, 0, 0, 0, 0, ""
    random = np.random.default_rng(0)
    for category in progress_bar(
        categories, len(categories), f"scoring, {engine.manifest.system}", "category"
    ):
        rows = _unit(random, len(category.images), engine.dimension)
        references = _References(model, rows, np.asarray(category.references), random)
        texts = _unit(random, len(category.texts), _TEXT)
        scorer = make_scorer(Rows.of(rows))
        name = scorer.name
        some = len(texts) if limit is None else min(limit, len(texts))
        light = limit is None or model.reference_is_gallery_row
        most = len(texts) if light else min(_OURS * some, len(texts))
        loop = _AuthorsLoop(model, rows)
        loop.rank(references, texts[:1])
        before = time.perf_counter()
        theirs = loop.rank(references, texts[:some])
        authors += (time.perf_counter() - before) * len(texts) / some
        _ours(engine, scorer, references, texts[:1])
        before = time.perf_counter()
        found = _ours(engine, scorer, references, texts[:most])
        ours += (time.perf_counter() - before) * len(texts) / most
        same += int((found[:some, 0] == theirs).sum())
        done, composed, every = done + some, composed + most, every + len(texts)
    return {
        "authors": _Timed(authors, done, every),
        "ours": _Timed(ours, composed, every),
        "same_first": same / done,
        "scorer": name,
    }


class _References:
    """What compositions read of the references of queries, by the queries' places."""

    def __init__(
        self, model: RetrievalModel, rows: Floats, wanted: npt.NDArray[np.int64], random: np.random.Generator
    ) -> None:
        self._given, self._places = rows, wanted
        if not model.reference_is_gallery_row:
            shape = reference_shape(model.system)
            self._given = random.standard_normal((_BATCH, *shape)).astype(np.float32)
            self._places = np.arange(len(wanted)) % _BATCH

    def __getitem__(self, part: slice) -> Floats:
        return self._given[self._places[part]]


class _AuthorsLoop:
    """Batches of 32 queries composed together, then one query at a time over the gallery, sorted whole."""

    def __init__(self, model: RetrievalModel, rows: Floats) -> None:
        import torch

        self._model = model
        self._rows = torch.from_numpy(rows)

    def rank(self, references: _References, texts: Floats) -> npt.NDArray[np.int64]:
        """The first row of each query."""
        import torch

        first = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                part = slice(start, min(start + _BATCH, len(texts)))
                terms = self._model.compose(torch.from_numpy(references[part]), torch.from_numpy(texts[part]))
                for number in range(len(terms.numerators)):
                    weights = None if terms.weights is None else terms.weights[number]
                    scores = literal_scores(terms.numerators[number], weights, self._rows)
                    first.append(int(ranked(scores, _K)[0]))
        return np.array(first)


def _ours(engine: Engine, scorer: Scorer, references: _References, texts: Floats) -> npt.NDArray[np.int64]:
    """Compose and rank in blocks: (Q, 50) rows."""
    found = [scorer.topk(terms, _K).rows for terms in _composed(engine, references, texts)]
    return np.concatenate(found)


def _composed(engine: Engine, references: _References, texts: Floats) -> Iterator[QueryTerms]:
    for start in itertools.count(0, _BLOCK):
        if start >= len(texts):
            return
        part = slice(start, min(start + _BLOCK, len(texts)))
        yield engine.compose(references[part], texts[part])


def _unit(random: np.random.Generator, count: int, dimension: int) -> Floats:
    drawn = random.standard_normal((count, dimension)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def _scaled_time(call: Callable[[], object], done: int, of: int) -> _Timed:
    before = time.perf_counter()
    call()
    return _Timed((time.perf_counter() - before) * of / done, done, of)


def _scaled(encoders: dict[str, _Timed], systems: dict[str, dict[str, Any]]) -> list[str]:
    timed = {
        "encoding images": encoders["images"],
        **{f"{name}, the authors' way": system["authors"] for name, system in systems.items()},
        **{f"{name}, ours": system["ours"] for name, system in systems.items()},
    }
    return [
        f"{what}: measured on {t.done:,} of {t.of:,} and scaled to all"
        for what, t in timed.items()
        if t.done < t.of
    ]
