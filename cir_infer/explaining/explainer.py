"""Explains the hits of one query. What all of them share is computed once, when the first is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.bundle.manifest import PixelInput
from cir_infer.engine import Engine
from cir_infer.errors import CirError, ImageError, StaleHitError, UsageError, shown
from cir_infer.explaining.explanation import Explanation, Heat, Method, Word
from cir_infer.explaining.pictures import Picture, covered, grid_of, picture_of
from cir_infer.explaining.query_side import BATCH, Cells, QuerySide, encoded, query_side
from cir_infer.explaining.shares import shares, values_of
from cir_infer.hits import Hit
from cir_infer.inputs.images import describe_image
from cir_infer.inputs.texts import Text
from cir_infer.processes.turns import Turn
from cir_infer.scoring.balance import Balance
from cir_infer.scoring.contract import Rows
from cir_infer.searching.asked import held_of
from cir_infer.searching.found import Held, Source
from cir_infer.searching.recognition import LOOSER, same_rows

__all__ = ["Explainer", "Wanted"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

Wanted = tuple["Hit | str", Any]
"""A hit or the id of an item, and its picture; None for where the gallery says it came from."""

_SAME = 2e-3
"""Terms of a hit further apart than this, in parts of their size, are of another row or another query."""


class Explainer:
    """Explains hits of one query. Threads may share one.

    Args:
        engine: of the searcher.
        source: gives the gallery as it is now.
        gallery: its path, for messages.
        reference: what the query was asked with.
        text: likewise.
        balance: factors of terms.
    """

    def __init__(
        self,
        engine: Engine,
        source: Callable[[], Source],
        gallery: str,
        reference: Any,
        text: Text | None,
        balance: Balance,
    ) -> None:
        self._engine, self._source, self._gallery = engine, source, gallery
        self._question = (reference, text)
        self._balance = balance
        self._turn = Turn()
        self._query: QuerySide | None = None

    def explain(
        self, wanted: Sequence[Wanted], as_found: bool = False, progress: bool = False
    ) -> list[Explanation | CirError]:
        """Explanations of hits, or why there is none; their pictures are encoded together.

        Args:
            wanted: what is to be explained.
            as_found: the hits were found by this very query, and their terms must be what they were.
            progress: show a bar where pictures are painted over.

        Raises:
            CirError: nothing can be explained: the bundle reads no pictures, or the query cannot be asked.
        """
        spec = self._engine.manifest.image
        if not isinstance(spec, PixelInput):
            raise UsageError(
                f"the bundle {self._engine.path} takes pre-extracted features, which have no places in a "
                "picture; explanations need a bundle that reads pixels"
            )
        source = self._source()
        query = self._query_side(spec, source, progress)
        found: list[Explanation | CirError] = []
        for start in range(0, len(wanted), BATCH):
            part = wanted[start : start + BATCH]
            held = held_of(source, [asked for asked, _ in part])
            targets = [self._target(one, spec, of) for one, of in zip(part, held, strict=True)]
            found += self._explained(query, targets, as_found, progress)
        return found

    def _query_side(self, spec: PixelInput, source: Source, progress: bool) -> QuerySide:
        query = self._query
        return self._turn.take(self._asked, spec, source, progress) if query is None else query

    def _asked(self, spec: PixelInput, source: Source, progress: bool) -> QuerySide:
        if self._query is None:
            self._query = query_side(self._engine, spec, source, self._question, self._balance, progress)
        return self._query

    def _target(self, wanted: Wanted, spec: PixelInput, held: Held | CirError) -> _Target | CirError:
        if isinstance(held, CirError):
            return held
        try:
            return _target(held, self._gallery, spec, wanted)
        except CirError as error:
            return error

    def _explained(
        self, query: QuerySide, targets: Sequence[_Target | CirError], as_found: bool, progress: bool
    ) -> list[Explanation | CirError]:
        """Explanations of some hits, whose pictures go through the encoder in one batch."""
        good = [target for target in targets if isinstance(target, _Target)]
        maps = iter(self._maps(query, good, progress))
        found: list[Explanation | CirError] = []
        for target in targets:
            if not isinstance(target, _Target):
                found.append(target)
                continue
            made = next(maps)
            try:
                found.append(self._complete(query, target, made, as_found))
            except CirError as error:
                found.append(error)
        return found

    def _maps(self, query: QuerySide, targets: Sequence[_Target], progress: bool) -> list[_Maps]:
        if not targets:
            return []
        if not self._engine.adds_up:
            return [self._occluded(query, target, progress) for target in targets]
        made = self._engine.encode_in_parts(np.stack([target.picture.array for target in targets]))
        return [
            _Maps(shares(query.terms, target.row, made.parts[at], made.constant[at]), made.rows[at], "shares")
            for at, target in enumerate(targets)
        ]

    def _occluded(self, query: QuerySide, target: _Target, progress: bool) -> _Maps:
        """Each term with the whole picture, less without each of its patches."""
        array = target.picture.array
        painted = np.concatenate([array[None], covered(array)])
        rows = encoded(self._engine.encode_prepared, painted, "hit", progress)
        values = np.stack([values_of(query.terms, row)[0] for row in rows])
        return _Maps((values[0] - values[1:]).T.reshape(-1, *grid_of(array)), rows[0], "occlusion")

    def _complete(self, query: QuerySide, target: _Target, maps: _Maps, as_found: bool) -> Explanation:
        looser = LOOSER[self._engine.manifest.precision]
        if not same_rows(target.rows, np.zeros(1, np.int64), maps.row, looser)[0]:
            raise ImageError(
                f"{target.said} is no longer the image that was indexed as {shown(target.id)}: its row is "
                "another; index it again, or pass the image that it was"
            )
        names = self._engine.manifest.terms
        values = values_of(query.terms, target.row)[0]
        if as_found and target.hit is not None:
            _check_terms(target.hit, dict(zip(names, values.tolist(), strict=True)))
        terms = {
            name: _heat(maps.maps[j], values[j], target.picture, maps.method) for j, name in enumerate(names)
        }
        spec = self._engine.manifest.image
        return Explanation(
            id=target.id,
            score=float(values.sum()),
            terms=terms,
            reference={} if query.cells is None else _reference(query.cells, target, names, values),
            words=_words(query, target, names, values),
            balance=dict(self._balance),
            exif_orientation=isinstance(spec, PixelInput) and spec.exif_orientation,
        )


@dataclass(frozen=True)
class _Target:
    """What is to be explained.

    Attributes:
        id: of the item.
        hit: as it was passed, where one was.
        rows: its one row, as it is stored.
        row: that row, (D,).
        picture: of the item.
        said: the picture, in words.
    """

    id: str
    hit: Hit | None
    rows: Rows
    row: Floats
    picture: Picture
    said: str


@dataclass(frozen=True)
class _Maps:
    """What was found of a picture.

    Attributes:
        maps: float64 (J, h, w).
        row: what its row is now, (D,).
        method: how the maps were made.
    """

    maps: npt.NDArray[np.float64]
    row: Floats
    method: Method


def _target(held: Held, gallery: str, spec: PixelInput, wanted: Wanted) -> _Target:
    asked, image = wanted
    hit = asked if isinstance(asked, Hit) else None
    item = held.told()
    if image is None:
        image = item.source
    if image is None:
        raise ImageError(
            f"the gallery {gallery} does not know where the image of {shown(item.id)} came from; pass the "
            "image itself (image=)"
        )
    try:
        picture = picture_of(image, spec)
    except ImageError as error:
        raise ImageError(f"the image of {shown(item.id)}: {error}; or pass it itself (image=)") from error
    return _Target(item.id, hit, held.rows, held.vector, picture, describe_image(image))


def _check_terms(hit: Hit, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        was = hit.terms.get(name, value)
        if abs(was - value) > _SAME * max(1.0, abs(value)):
            raise StaleHitError(
                f"{shown(hit.id)} was found with {name} {was:.4f} and has {value:.4f} now: the gallery's "
                "item or the reference is another than it was; ask again"
            )


def _heat(found: npt.NDArray[np.float64], value: float, picture: Picture, method: Method) -> Heat:
    rest = float(value - found.sum())
    return Heat(found.astype(np.float32), float(value), rest, picture.box, picture.size, method)


def _reference(cells: Cells, target: _Target, names: Sequence[str], values: Doubles) -> dict[str, Heat]:
    """What each cell of the reference is worth: the term with all of them less without it."""
    variants = values_of(cells.terms, target.row)
    maps = (variants[0] - variants[1:]).T.reshape(-1, *cells.grid)
    return {name: _heat(maps[j], values[j], cells.picture, cells.method) for j, name in enumerate(names)}


def _words(query: QuerySide, target: _Target, names: Sequence[str], values: Doubles) -> tuple[Word, ...]:
    if query.without is None:
        return ()
    worth = values - values_of(query.without, target.row)
    return tuple(
        Word(one.word, one.start, one.end, one.caption, dict(zip(names, worth[at].tolist(), strict=True)))
        for at, one in enumerate(query.words)
    )
