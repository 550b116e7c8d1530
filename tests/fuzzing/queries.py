"""Queries, their pictures and what is drawn of them: some arguments fit, the others are anything in hand."""

from __future__ import annotations

import io
import pathlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cir_infer import Engine, Gallery, Hit, Hits, Searcher
from cir_infer.bundle import Bundle
from cir_infer.drawing.sheet import contact_sheet
from tests import bundles
from tests.fuzzing.mutations import weird
from tests.fuzzing.target import Target
from tests.indexing.support import png


class Odd:
    """An object that says nothing of itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __str__ = __repr__


def anything(rng: random.Random, depth: int = 2) -> Any:
    """A value of any type that a caller may hold in hand."""
    kinds: list[Callable[[], Any]] = [
        lambda: weird(rng),
        lambda: None,
        lambda: rng.choice([True, False, 0, -1, 1, 2**63, 10**40, 0.5, float("nan"), float("inf"), 1j]),
        lambda: rng.choice(
            [np.int64(3), np.float32(2), np.bool_(True), np.str_("red"), np.datetime64("2020")]
        ),
        lambda: np.zeros(
            rng.choices([0, 1, 3, 4, 8], k=rng.randint(0, 4)), rng.choice(["u1", "f4", "O", "U1", "?"])
        ),
        lambda: rng.choice(
            ["", "red", "\0", "\ud800", "a" * 100_000, "/", "sku-1", "is red", b"red", bytearray(3)]
        ),
        lambda: io.BytesIO(rng.choice([b"", b"x", png(1)])),
        lambda: rng.choice(
            [io.StringIO("x"), closed(), Path("nothing.png"), pathlib.PurePosixPath("/"), Path()]
        ),
        lambda: Image.new(rng.choice(["RGB", "L", "P", "CMYK", "1", "I;16"]), (rng.randint(1, 9), 5)),
        lambda: Hit(rng.choice(["1", "none", 5, None, "x" * 10_000])),  # type: ignore[arg-type]
        lambda: Hits([Hit("1")]),
        lambda: rng.choice([object(), Odd(), Image, len, ..., NotImplemented, range(3), iter("ab")]),
    ]
    if depth:
        kinds += [
            lambda: [anything(rng, depth - 1) for _ in range(rng.randint(0, 3))],
            lambda: tuple(anything(rng, depth - 1) for _ in range(rng.randint(0, 2))),
            lambda: {rng.choice(["a", "price", 5]): anything(rng, depth - 1)},
            lambda: (value for value in [anything(rng, depth - 1)]),
            lambda: {rng.choice(["1", 2]) for _ in range(2)},
        ]
    return rng.choice(kinds)()


def closed() -> Any:
    file = io.BytesIO(b"x")
    file.close()
    return file


class Queries(Target):
    """Calls of an engine and a searcher, contact sheets, and what is opened for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = bundles.write_tiny_bundle(folder / "tiny.cir")
        self._engine = Engine(self._path, device="cpu", threads=1)
        with Gallery.create(folder / "g", self._engine) as gallery:
            images, metadata = [png(n) for n in range(12)], [{"price": n} for n in range(12)]
            gallery.add(images, ids=[str(n) for n in range(12)], metadata=metadata)
        self._searcher = Searcher(self._engine, folder / "g")
        self._image = png(3)

    def feed(self, rng: random.Random) -> None:
        def one(fitting: Any) -> Any:
            return fitting if rng.random() < 0.6 else anything(rng)

        engine, searcher, image = self._engine, self._searcher, self._image
        k, where, exclude = one(3), one("price < 5"), one(["1"])
        flag, size, errors = one(False), one(2), one("return")
        several, texts = one([image, one(image)]), one(["is red", one("is blue")])
        calls: list[Callable[[], Any]] = [
            lambda: searcher.query(one(image), one("is red"), k, where, exclude, flag),
            lambda: list(searcher.query_batch(several, texts, k, where, exclude, size, flag, errors)),
            lambda: searcher.item(one("1")),
            lambda: searcher.warm_up(k),
            lambda: engine.encode_images(several, size, flag, errors),
            lambda: engine.encode_references(several, size, errors),
            lambda: engine.encode_texts(texts, size, flag),
            lambda: engine.encode_prepared(one(np.zeros((1, 8, 8, 3), np.uint8))),
            lambda: engine.prepare(one(image)),
            lambda: engine.compose(one(np.zeros((1, 8), np.float32)), one(np.zeros((1, 6), np.float32))),
            lambda: contact_sheet(one(image), one("is red"), one(Hits([Hit("1", 1, 0.5)])), one(["1"])),
            lambda: Bundle(one(self._path)),
            lambda: Engine(one(self._path), one("cpu"), one(1), one("refuse"), one(True)).close(),
            lambda: Searcher(engine, one(self._searcher.gallery), one("auto"), one("cpu")).query(
                image, "is red"
            ),
        ]
        rng.choice(calls)()
