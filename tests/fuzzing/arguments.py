"""What programs pass to the library: sound calls of which one or two arguments are anything at all."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cir_infer import Engine, Gallery, Hit, Searcher
from cir_infer.gallery.filters.filters import parse
from cir_infer.gallery.metadata.metadata import decode, encode
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows
from tests.bundles import DIM, write_tiny_bundle
from tests.fuzzing.target import Target
from tests.fuzzing.values import Colour, OwnError, Spiteful, Text, all_values

PATHS: list[Any] = [
    "new",
    "new",
    "g2",
    "",
    ".",
    "new/deep",
    "a\x00b",
    "\ud800",
    "x" * 300,
    "new\n",
    b"new",
    None,
    5,
    Path("new"),
    Path("file"),
    "file",
    "folder",
    [],
    Spiteful(),
    np.str_("new"),
    Text("new"),
    "new.safetensors",
    Colour.RED,
]
PLACES = ("path", "source", "target", "bundle", "gallery")


Call = tuple[str, Callable[..., Any], dict[str, Any]]
"""The name of a call, what is called, and arguments that fit."""


class Arguments(Target):
    """Public calls of Gallery, Snapshot, Searcher, Engine and scorers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        bundle = write_tiny_bundle(folder / "tiny.cir")
        self._home = folder / "a" / "b"  # where relative paths lie, also those that climb a little
        self._engine = Engine(bundle, device="cpu", threads=1)
        self._values = all_values()
        with Gallery.create(folder / "seed", self._engine, dtype="float32") as gallery:
            gallery.add_vectors(
                ids=[f"0-{n}" for n in range(6)],
                vectors=np.random.default_rng(0).normal(size=(6, DIM)),
                metadata=[{"price": n, "tags": ["a", f"t{n}"], "size": {"h": n / 2}} for n in range(6)],
                sources=[f"/images/{n}.jpg" for n in range(6)],
            )

    def feed(self, rng: random.Random) -> None:
        shutil.rmtree(self._home, ignore_errors=True)
        (self._home / "folder").mkdir(parents=True)
        (self._home / "file").write_bytes(b"abc")
        shutil.copytree(self.folder / "seed", self._home / "g2")
        before = Path.cwd()
        os.chdir(self._home)
        try:
            with Gallery.open("g2", self._engine) as gallery:
                searcher = Searcher(self._engine, gallery)
                try:
                    with contextlib.suppress(OwnError):
                        self._call(rng, gallery, searcher)
                finally:
                    # Whatever was taken or refused, the gallery is sound and answers.
                    assert gallery.verify().ok
                    snapshot = gallery.snapshot()
                    assert len(snapshot.items(snapshot.live_rows())) == snapshot.count
                    searcher.close()
        finally:
            os.chdir(before)

    def _call(self, rng: random.Random, gallery: Gallery, searcher: Searcher) -> None:
        result = _called(rng, self._values, self._calls(gallery, searcher))
        if isinstance(result, Gallery):
            result.close()
        elif isinstance(result, Iterator):
            assert sum(1 for _ in result) < 100

    def _calls(self, gallery: Gallery, searcher: Searcher) -> list[Call]:
        snapshot = gallery.snapshot()
        image = np.zeros((8, 8, 3), np.uint8)
        two = np.random.default_rng(1).normal(size=(2, DIM)).astype(np.float32)
        items: dict[str, Any] = {
            "ids": ["new", "0-1"],
            "vectors": two,
            "metadata": [{"price": 1}, None],
            "sources": ["/x.jpg", None],
            "stamps": ["s", None],
            "existing": "replace",
        }
        asked: dict[str, Any] = {
            "k": 2,
            "where": {"price": {"<": 4}},
            "exclude": ["0-1", "x"],
            "exclude_reference": False,
        }
        made: dict[str, Any] = {"engine": None, "dtype": "float16", "dimension": DIM, "fingerprint": None}
        rows = {
            key: value for key, value in items.items() if key in ("ids", "vectors", "metadata", "sources")
        }
        return [
            ("create", Gallery.create, {"path": "new", **made}),
            ("open", Gallery.open, {"path": "g2", "engine": self._engine, "read_only": True, "wait": 1}),
            (
                "from_arrays",
                Gallery.from_arrays,
                {"path": "new", **rows, "dtype": "float16", "fingerprint": None},
            ),
            ("import_from", Gallery.import_from, {"path": "new", "source": "g2", "dtype": None}),
            ("backup", gallery.backup, {"path": "new", "verify": True, "link": True}),
            ("export", gallery.export, {"target": "out.safetensors", "overwrite": False}),
            ("add_vectors", gallery.add_vectors, items),
            (
                "add_vectors",
                gallery.add_vectors,
                {"metadata": items["metadata"], "ids": items["ids"], "vectors": two, "existing": "replace"},
            ),
            (
                "add",
                gallery.add,
                {
                    "images": [image, image],
                    "ids": ["new", "0-1"],
                    "metadata": [{"a": 1}, None],
                    "existing": "replace",
                    "batch_size": 2,
                },
            ),
            (
                "set_metadata",
                gallery.set_metadata,
                {"ids": ["0-1", "0-2"], "metadata": items["metadata"], "merge": True, "missing": "skip"},
            ),
            ("remove", gallery.remove, {"ids": ["0-1", "0-2"], "missing": "skip"}),
            ("duplicates", gallery.duplicates, {"threshold": 0.99, "progress": False}),
            ("check_engine", gallery.check_engine, {"engine": self._engine}),
            ("contains", lambda item: item in gallery, {"item": "0-1"}),
            ("matching", lambda where: snapshot.matching(where), {"where": {"price": {"in": [1, 2]}}}),
            ("where", lambda where: snapshot.where(where), {"where": {"tags": ["a", "t1"]}}),
            ("parse", lambda field: parse({"price": field, "tags": {"in": field}}), {"field": 1}),
            (
                "parse",
                lambda operator, value: parse({"a": _Pair(operator, value)}),
                {"operator": "<", "value": 1},
            ),
            ("encode", _stored, {"metadata": {"a": 1}}),
            ("encode", lambda value: _stored({"a": value, "b": [value], "c": {"d": value}}), {"value": 1}),
            ("row", lambda id: snapshot.row(id), {"id": "0-1"}),
            ("items", lambda rows: snapshot.items(rows), {"rows": [0, 1]}),
            ("ids", lambda rows: snapshot.ids(rows), {"rows": [0, 1]}),
            ("vector", lambda row: snapshot.vector(row), {"row": 1}),
            ("query", searcher.query, {"image": image, "text": "is red", **asked}),
            ("query", searcher.query, {"image": image, "text": "is red", **asked}),
            (
                "query_batch",
                searcher.query_batch,
                {
                    "images": [image, Hit("0-1")],
                    "texts": ["is red", "is red"],
                    **asked,
                    "batch_size": 2,
                    "errors": "raise",
                },
            ),
            ("item", lambda id: searcher.item(id), {"id": "0-1"}),
            ("warm_up", lambda k: searcher.warm_up(k), {"k": 2}),
            (
                "Searcher",
                lambda **given: Searcher(**given).close(),
                {
                    "bundle": "../../tiny.cir",
                    "gallery": "g2",
                    "device": "cpu",
                    "scorer": "cpu",
                    "threads": 1,
                    "exif_orientation": None,
                },
            ),
            (
                "Engine",
                lambda **given: Engine(**given).close(),
                {
                    "bundle": "../../tiny.cir",
                    "device": "cpu",
                    "threads": 1,
                    "missing_plan": None,
                    "exif_orientation": None,
                },
            ),
            (
                "encode_images",
                self._engine.encode_images,
                {"images": [image], "batch_size": 2, "progress": False, "errors": "raise"},
            ),
            (
                "encode_texts",
                self._engine.encode_texts,
                {"texts": ["is red"], "batch_size": 2, "pad_to_batch": False},
            ),
            (
                "compose",
                self._engine.compose,
                {"reference": two, "text": self._engine.encode_texts(["is red"] * 2)},
            ),
        ]


class ScorerArguments(Target):
    """Public calls of scorers, and of what goes into them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._values = all_values()
        rng = np.random.default_rng(1)
        terms = rng.normal(size=(3, 2, DIM)).astype(np.float32)
        self._terms = {"numerators": terms, "weights": np.abs(terms), "names": ("a", "b")}
        self._array = rng.normal(size=(50, DIM)).astype(np.float32)
        self._rows = Rows.of(self._array)
        backends = ("cpu", "cpu-int8", "reference")
        self._scorers = [make_scorer(self._rows, backend, 1) for backend in backends]

    def feed(self, rng: random.Random) -> None:
        terms = QueryTerms(**self._terms)
        allow = np.packbits(np.arange(50) % 3 > 0, bitorder="little")
        asked = {"terms": terms, "k": 2, "allow": allow}
        calls: list[Call] = [
            ("QueryTerms", QueryTerms, self._terms),
            ("Rows", Rows, {"blocks": (self._array,), "scales": None}),
            ("Rows.of", lambda array: Rows.of(array), {"array": self._array}),
            ("take", lambda rows: self._rows.take(rows), {"rows": [0, 3]}),
            ("make_scorer", make_scorer, {"rows": self._rows, "backend": "cpu", "threads": 1}),
            *((scorer.name, scorer.topk, asked) for scorer in self._scorers),
        ]
        with contextlib.suppress(OwnError):
            _called(rng, self._values, calls)


def _called(rng: random.Random, values: list[Any], calls: list[Call]) -> Any:
    """What one of the calls answers to other arguments than those that fit."""
    _, method, sound = rng.choice(calls)
    arguments = dict(sound)
    for name in rng.sample(sorted(arguments), min(len(arguments), rng.choice((1, 1, 2)))):
        arguments[name] = rng.choice(PATHS) if name in PLACES else _other(rng, values, arguments[name])
    return method(**arguments)


def _other(rng: random.Random, values: list[Any], sound: Any) -> Any:
    kind = rng.random()
    value = rng.choice(values)
    if kind < 0.4 and isinstance(sound, list) and sound:
        out = list(sound)
        out[rng.randrange(len(out))] = value
        return out
    if kind < 0.5 and isinstance(sound, list):
        return rng.choice((tuple, iter, deque, list))(sound[: rng.randrange(3)])
    if kind < 0.6:
        return rng.choice(([value], (value,), {"a": value}, [{"a": value}, {"price": value}], [value] * 2))
    if kind < 0.65:
        return (element for element in [value])
    return value


class _Pair(UserDict[Any, Any]):
    """A dictionary with one key, which need not be one that dictionaries can have."""

    def __init__(self, key: Any, value: Any) -> None:
        super().__init__()
        self._pair = (key, value)

    def items(self) -> Any:
        return [self._pair]


def _stored(metadata: Any) -> None:
    """What is taken comes out, and is taken again as it is."""
    encoded = encode(metadata, "x")
    assert encode(decode(encoded.text), "x") == encoded
