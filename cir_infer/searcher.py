"""A searcher: an engine plus a gallery. Reference image and text in, ranked hits out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.bundle import Bundle
from cir_infer.engine import Engine
from cir_infer.errors import DeviceError, GalleryError, UsageError, shown
from cir_infer.gallery import Gallery, Snapshot
from cir_infer.gallery.filters import Where
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.images import ImageLike
from cir_infer.inputs.texts import Text
from cir_infer.runtime.chains import Chains
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer, TopK

__all__ = ["Reference", "Searcher"]

_log = logging.getLogger(__name__)

_Pending: TypeAlias = "Callable[[], npt.NDArray[np.float32]] | None"
"""Waits for text embeddings; None for a system that reads no text."""

Reference: TypeAlias = "ImageLike | Hit | None"
"""An image, a Hit to refine, or None for a system that reads only the text."""


class Searcher:
    """Answers queries over a gallery. Threads may share one.

    Args:
        bundle: a bundle's path, a `Bundle`, or an `Engine` to share.
        gallery: a gallery or its path; by default the bundle's own, its path with the ending
            ".gallery".
        device: where the graphs run, see `Engine`; not together with an `Engine`.
        scorer: see `cir_infer.scoring.make_scorer`; "auto" scores on the engine's device.

    Attributes:
        engine: the engine.
        gallery: the gallery. Items that are added or removed show from the next query on.

    Raises:
        BundleError, DeviceError: see `Engine`.
        GalleryError: the gallery is missing or damaged, or was encoded by another bundle.
        UsageError: contradicting arguments.
    """

    def __init__(
        self,
        bundle: Engine | Bundle | str | os.PathLike[str],
        gallery: Gallery | str | os.PathLike[str] | None = None,
        device: str = "auto",
        scorer: str = "auto",
    ) -> None:
        if isinstance(bundle, Engine) and device != "auto":
            raise UsageError(f"device={shown(device)} cannot change an Engine that is already on its device")
        self.engine = bundle if isinstance(bundle, Engine) else Engine(bundle, device)
        if isinstance(gallery, Gallery):
            gallery.check_engine(self.engine)
            self.gallery = gallery
        else:
            path = Path(self.engine.path).with_suffix(".gallery") if gallery is None else Path(gallery)
            self.gallery = Gallery.open(path, self.engine, read_only=True)
        self._backend = scorer
        self._lock = Lock()
        self._current: tuple[Snapshot, Scorer, Chains | None] | None = None
        self._beside = ThreadPoolExecutor(thread_name_prefix="cir-text")

    def query(
        self,
        image: Reference,
        text: Text | None,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
    ) -> Hits:
        """The k items that best match a reference image changed as a text says.

        Args:
            image: see `Reference`. A Hit is refined: its gallery row is the reference embedding, no
                image is encoded, and the Hit itself is not among the answers.
            text: the modification, or a list of captions; None for a system that reads no text.
            k: how many hits; fewer come back where fewer items qualify.
            where: a filter on metadata, see docs/gallery.md. One that leaves nothing gives no hits.
            exclude: ids that must not be answered, e.g. the reference's own; unknown ids are ignored.

        Raises:
            ImageError: the image cannot be read.
            TextError: the text is empty, too long, or nothing in it can be read.
            GalleryError: the gallery is empty, or a Hit is no longer in it.
            UsageError: k < 1, a malformed filter, or a Hit where the system needs the image.
        """
        return next(self.query_batch([image], [text], k, where, exclude))

    def query_batch(
        self,
        images: Iterable[Reference],
        texts: Iterable[Text | None],
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        batch_size: int = 32,
    ) -> Iterator[Hits]:
        """The answers to many queries, in order, all over the gallery as it is now.

        Args:
            images: one reference a query, see `query`.
            texts: one text a query.
            k: how many hits for each.
            where: a filter on metadata for all of them.
            exclude: ids that no query may answer.
            batch_size: queries encoded and scored together.

        Yields:
            `Hits`, one for each query.

        Raises:
            UsageError: as many images as texts were expected; and as `query`.
        """
        if type(k) is not int or k < 1:
            raise UsageError(f"k is {shown(k)}; expected a whole number of at least 1")
        if isinstance(exclude, str):
            raise UsageError(f'exclude is a text; expected a list of ids, e.g. exclude=["{exclude}"]')
        snapshot = self.gallery.snapshot()
        if snapshot.count == 0:
            raise GalleryError(
                f"the gallery {self.gallery.path} is empty; add images with cir-index or add()"
            )
        allow = _without(snapshot, snapshot.where(where), exclude)
        return self._answers(zip(images, texts, strict=True), snapshot, k, allow, batch_size)

    @property
    def scorer(self) -> Scorer:
        """What scores the gallery as it is now."""
        return self._scorer(self.gallery.snapshot())[0]

    def warm_up(self, k: int = 10) -> None:
        """Do now what the first query would do: load kernels, take buffers, capture CUDA graphs.

        Args:
            k: as later queries will ask for.

        Raises:
            GalleryError: the gallery is empty.
            DeviceError: the device failed.
        """
        snapshot = self.gallery.snapshot()
        if snapshot.count == 0:
            raise GalleryError(f"the gallery {self.gallery.path} is empty; there is nothing to warm up with")
        samples = self.engine.warm_up()
        scorer, chains = self._scorer(snapshot)
        if chains is None:
            scorer.topk(self.engine.compose(samples.reference, samples.text), min(k, snapshot.count))
            return
        text = None if samples.text is None else samples.text[0]
        if not self.engine.needs_reference:
            chains.topk(None, None, text, min(k, snapshot.count), None)
            return
        chains.topk(samples.image[0], None, text, min(k, snapshot.count), None)
        if self.engine.row_is_reference and samples.reference is not None:
            chains.topk(None, samples.reference[0], text, min(k + 1, snapshot.count), None)

    def item(self, id: str) -> Hit:
        """An item of the gallery as a Hit, to refine it without a query before.

        Raises:
            GalleryError: there is no such item.
        """
        snapshot = self.gallery.snapshot()
        item = snapshot.items([self._row(snapshot, id)])[0]
        return Hit(id, metadata=item.metadata, source=item.source)

    def describe(self) -> dict[str, Any]:
        """Engine, gallery and scorer, as plain values that JSON can hold."""
        snapshot = self.gallery.snapshot()
        return {
            **self.engine.describe(),
            "gallery": str(self.gallery.path),
            "rows": snapshot.count,
            "row_type": str(snapshot.rows.dtype),
            "scorer": self._scorer(snapshot)[0].name,
        }

    def _answers(
        self,
        queries: Iterator[tuple[Reference, Text | None]],
        snapshot: Snapshot,
        k: int,
        allow: npt.NDArray[np.uint8] | None,
        batch_size: int,
    ) -> Iterator[Hits]:
        scorer, chains = self._scorer(snapshot)
        while batch := _next(queries, batch_size):
            references = [reference for reference, _ in batch]
            pending = self._texts(references, [text for _, text in batch])
            own = [self._row(snapshot, hit.id) if isinstance(hit, Hit) else -1 for hit in references]
            # A refined Hit is left out of its own answer only, so one more is asked for.
            wanted = min(k + (max(own) >= 0), snapshot.count)
            if chains is not None and len(batch) == 1:
                top = self._chained(chains, references[0], own[0], pending, snapshot, wanted, allow)
            else:
                top = scorer.topk(self._terms(references, own, pending, snapshot), wanted, allow)
            keep = (top.rows >= 0) & (top.rows != np.array(own)[:, None])
            chosen = [np.flatnonzero(kept)[:k] for kept in keep]
            for places, scores, rows, parts in zip(chosen, top.scores, top.rows, top.terms, strict=True):
                names = self.engine.manifest.terms
                yield _hits(snapshot, names, scores[places], rows[places], parts[places])

    def _chained(
        self,
        chains: Chains,
        reference: Reference,
        own: int,
        text: _Pending,
        snapshot: Snapshot,
        k: int,
        allow: npt.NDArray[np.uint8] | None,
    ) -> TopK:
        """One query in one launch; the text is encoded while the image is prepared."""
        image = row = None
        if self.engine.needs_reference:
            self._check_references([reference])
            if isinstance(reference, Hit):
                row = snapshot.vector(own)
            elif reference is not None:
                image = self.engine.prepare(reference)
        return chains.topk(image, row, None if text is None else text()[0], k, allow)

    def _terms(
        self, references: Sequence[Reference], own: Sequence[int], text: _Pending, snapshot: Snapshot
    ) -> QueryTerms:
        engine = self.engine
        embeddings = self._references(references, own, snapshot) if engine.needs_reference else None
        return engine.compose(embeddings, None if text is None else text())

    def _texts(self, references: Sequence[Reference], texts: Sequence[Text | None]) -> _Pending:
        """Text embeddings, encoded beside the images; where there are none, once they are asked for."""
        engine = self.engine
        if not engine.needs_text:
            return None
        if None in texts:
            raise UsageError(f"the system {shown(engine.manifest.system)} needs a text for every query")
        encode = partial(engine.encode_texts, [text for text in texts if text is not None])
        images = any(not isinstance(reference, Hit) for reference in references)
        # A thread costs a refined Hit more than it saves.
        return self._beside.submit(encode).result if images and engine.needs_reference else encode

    def _check_references(self, references: Sequence[Reference]) -> None:
        engine = self.engine
        hit = next((hit for hit in references if isinstance(hit, Hit)), None)
        if hit is not None and not engine.row_is_reference:
            raise UsageError(
                f"the system {shown(engine.manifest.system)} sees reference images with an encoder of its "
                f"own, so a Hit cannot be refined from its row; pass the image of {shown(hit.id)} instead"
            )
        if any(reference is None for reference in references):
            raise UsageError(
                f"the system {shown(engine.manifest.system)} needs a reference image for every query"
            )

    def _references(
        self, references: Sequence[Reference], own: Sequence[int], snapshot: Snapshot
    ) -> npt.NDArray[np.float32]:
        """Reference embeddings: gallery rows for Hits, the encoder for images."""
        self._check_references(references)
        images = [image for image in references if not isinstance(image, Hit) and image is not None]
        encoded = iter(self.engine.encode_references(images, max(1, len(images))) if images else ())
        return np.stack([snapshot.vector(row) if row >= 0 else next(encoded) for row in own])

    def _row(self, snapshot: Snapshot, id: str) -> int:
        row = snapshot.row(id)
        if row is None:
            raise GalleryError(f"the gallery {self.gallery.path} holds no item {shown(id)} (any more)")
        return row

    def _scorer(self, snapshot: Snapshot) -> tuple[Scorer, Chains | None]:
        with self._lock:
            if self._current is None or self._current[0] is not snapshot:
                # The old scorer is let go first: a GPU may not hold two galleries.
                self._current = None
                scorer = self._new_scorer(snapshot.rows)
                self._current = (snapshot, scorer, self.engine.chains(scorer))
            return self._current[1:]

    def _new_scorer(self, rows: Rows) -> Scorer:
        """A scorer on the engine's device, unless another was asked for by name."""
        engine = self.engine
        if self._backend != "auto" or engine.device == "cpu":
            return make_scorer(rows, self._backend, engine.threads)
        try:
            return make_scorer(rows, "cuda")
        except DeviceError as error:
            if engine.device_asked != "auto":
                raise
            _log.warning("scoring on the CPU (%s)", error)
            return make_scorer(rows, "cpu", engine.threads)


def _next(queries: Iterator[tuple[Reference, Text | None]], size: int) -> list[tuple[Reference, Text | None]]:
    try:
        return list(islice(queries, size))
    except ValueError as error:
        raise UsageError(f"as many images as texts were expected ({error})") from error


def _without(
    snapshot: Snapshot, allow: npt.NDArray[np.uint8] | None, exclude: Iterable[str] | None
) -> npt.NDArray[np.uint8] | None:
    """The mask `allow` with the rows of some ids cleared."""
    rows = [row for row in map(snapshot.row, exclude or ()) if row is not None]
    if not rows:
        return allow
    if allow is None:
        allow = np.packbits(np.ones(snapshot.rows.count, np.bool_), bitorder="little")
    allow = allow.copy()
    for row in rows:
        allow[row // 8] &= ~np.uint8(1 << row % 8)
    return allow


def _hits(
    snapshot: Snapshot,
    names: Sequence[str],
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    terms: npt.NDArray[np.float32],
) -> Hits:
    return Hits(
        Hit(item.id, place, score, dict(zip(names, parts, strict=True)), item.metadata, item.source)
        for place, (item, score, parts) in enumerate(
            zip(snapshot.items(rows), scores.tolist(), terms.tolist(), strict=True), start=1
        )
    )
