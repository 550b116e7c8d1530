"""The answers to several queries of one source: encoded and scored together, and told apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.engine import Engine
from cir_infer.errors import CirError, ImageError, ScoringError
from cir_infer.hits import Hits
from cir_infer.inputs.preparing import PreparedImage
from cir_infer.inputs.texts import Text
from cir_infer.processes.pending import Pending
from cir_infer.processes.threads import Threads
from cir_infer.runtime.compose_parts import Begun
from cir_infer.runtime.encoding import stacked
from cir_infer.scoring.balance import Balance, balanced
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searching.asked import Asked, Reference, ask
from cir_infer.searching.found import Found, References, Source
from cir_infer.searching.made_hits import made_hits
from cir_infer.searching.recognition import LOOSER, FileName

if TYPE_CHECKING:
    from cir_infer.explaining.explanation import Explains

__all__ = ["Answering", "Wish", "numbered", "raised"]

Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wish:
    """What is wanted of several queries.

    Attributes:
        k: how many hits for each.
        leave_reference_out: whether items that show a query's own reference are left out.
        balance: factors of terms, by name; none where every term counts as the system says.
    """

    k: int
    leave_reference_out: bool
    balance: Balance


@dataclass(frozen=True)
class Answering:
    """Answers queries.

    Attributes:
        engine: encodes them.
        source: answers them.
        beside: gives the threads of this process that encode texts while images are read.
        wish: what is wanted.
        explainer: makes what explains the hits of a query, of its reference, text and balance.
    """

    engine: Engine
    source: Source
    beside: Callable[[], Threads]
    wish: Wish
    explainer: Callable[[Any, Any, Balance], Explains]

    def answers(self, pairs: Iterator[tuple[Reference, Text | None]], size: int) -> Iterator[Hits | CirError]:
        """The answer to each pair, or why there is none; `size` of them are computed together."""
        number = 0
        while batch := list(islice(pairs, size)):
            asked = ask(self.engine, self.source, batch, number)
            number += len(asked)
            good = [query for query in asked if query.error is None]
            if self._in_one_launch and len(good) == len(batch) == 1:
                answers = [self._chained(good[0])]
            else:
                answers = self._scored(good)
            found = dict(zip([query.number for query in good], answers, strict=True))
            for query in asked:
                yield query.error if query.error is not None else found[query.number]

    @property
    def _in_one_launch(self) -> bool:
        """Whether nothing of the wish needs the host between the graphs and the scorer."""
        return self.source.chained and not self.wish.leave_reference_out and not self.wish.balance

    @property
    def _looser(self) -> float:
        return LOOSER[self.engine.manifest.precision]

    def _chained(self, query: Asked) -> Hits | CirError:
        """One query in one launch; the text is encoded while the image is prepared."""
        image = row = None
        text = self._texts([query])
        if self.engine.needs_reference:
            if query.is_image:
                try:
                    image = self.engine.prepare(query.reference, None if text is None else text.begin)
                except CirError as error:
                    return error
            elif query.held is not None:
                row = query.held.vector
        wanted = min(self.wish.k + (query.held is not None), self.source.size)
        found = self.source.search_chained(
            image, row, None if text is None else text.result().text[0], wanted
        )
        return self._hits(query, found, 0)

    def _scored(self, queries: list[Asked]) -> list[Hits | CirError]:
        """The answers to queries, encoded and scored together; a fault of one costs only that one."""
        pending = self._texts(queries)
        references = self._references(queries, pending)
        answers: dict[int, Hits | CirError] = {
            at: value for at, value in enumerate(references or ()) if isinstance(value, CirError)
        }
        keep = [at for at in range(len(queries)) if at not in answers]
        if keep:
            text = None if pending is None else pending.result()
            if text is not None and len(keep) < len(queries):
                text = text.take(keep)
            images = None
            if references is not None:
                images = stacked([row for row in references if not isinstance(row, CirError)])
            ranked = self._ranked([queries[at] for at in keep], images, text)
            answers.update(zip(keep, ranked, strict=True))
        return [answers[at] for at in range(len(queries))]

    def _ranked(
        self, queries: list[Asked], images: Floats | None, text: Begun | None
    ) -> list[Hits | CirError]:
        wish = self.wish
        try:
            terms = balanced(self.engine.compose(images, text), wish.balance)
        except ScoringError as error:
            if len(queries) == 1:
                return [error]
            ones = [slice(at, at + 1) for at in range(len(queries))]
            return [
                self._ranked([query], images if images is None else images[one], text and text.take(one))[0]
                for query, one in zip(queries, ones, strict=True)
            ]
        rows = self._own_rows(queries, images)
        # A refined Hit is left out of its own answer only, so one more is asked for.
        more = int(wish.leave_reference_out or any(query.held is not None for query in queries))
        references = References(rows, self._looser)
        source = self.source.begun()
        found = source.search(terms, min(wish.k + more, source.size), references)
        answers = [self._hits(query, found, at) for at, query in enumerate(queries)]
        if wish.leave_reference_out:
            for at, query in enumerate(queries):
                answers[at] = self._complete(source, query, terms[at], answers[at], rows[at])
        return [*answers]

    def _complete(
        self, source: Source, query: Asked, terms: QueryTerms, hits: Hits, row: Floats | None
    ) -> Hits:
        """Asks for more where several items that show the reference itself were left out."""
        wish, asked = self.wish, self.wish.k + 1
        while len(hits) < wish.k and asked < source.size:
            asked = min(2 * asked, source.size)
            found = source.search(terms, asked, References([row], self._looser))
            hits = self._hits(query, found, 0)
            if len(found.items[0]) < asked:
                break
        return hits

    def _texts(self, queries: list[Asked]) -> Pending[Begun] | None:
        """Text embeddings, beside the images, with what compose makes of them; without images, once asked."""
        if not self.engine.needs_text or not queries:
            return None
        encode = partial(self.engine.encode_read, [query.text for query in queries if query.text is not None])
        # A thread costs a refined Hit more than it saves, and so does a run of its own for a part of compose.
        if self.engine.needs_reference and any(query.is_image for query in queries):
            return Pending(lambda: self.engine.begin(encode()), self.beside)
        return Pending(lambda: Begun(encode()))

    def _references(
        self, queries: list[Asked], texts: Pending[Begun] | None
    ) -> list[Floats | CirError] | None:
        """Reference embeddings: gallery rows for Hits, the encoder for images. None where none is needed."""
        if not self.engine.needs_reference:
            return None
        images = [query.reference for query in queries if query.is_image]
        if len(images) == 1:
            images = [self._prepared(images[0], texts)]
        elif texts is not None:
            texts.begin()
        encoded: Iterator[Floats | CirError] = iter(())
        if images:
            rows, failed = self.engine.encode_references(images, len(images), errors="return")
            encoded = iter([_bare(failed[at]) if at in failed else row for at, row in enumerate(rows)])
        return [next(encoded) if query.held is None else query.held.vector for query in queries]

    def _prepared(self, image: Any, texts: Pending[Begun] | None) -> PreparedImage | ImageError:
        """An image as the encoder takes it. Texts wait until it is open: both would want Python's lock."""
        try:
            return self.engine.prepare_image(image, None if texts is None else texts.begin)
        except ImageError as error:
            return error

    def _own_rows(self, queries: list[Asked], images: Floats | None) -> list[Floats | None]:
        """What a gallery row of each reference looks like, None where that would cost an encoder's run."""
        if images is not None and self.engine.row_is_reference:
            # Of a refined Hit, what it is is known; its copies are looked for only where they are left out.
            wanted = [query.is_image or self.wish.leave_reference_out for query in queries]
            return [row if look else None for row, look in zip(images, wanted, strict=True)]
        rows: list[Floats | None] = [None] * len(queries)
        seen = [at for at, query in enumerate(queries) if query.is_image]
        if self.wish.leave_reference_out and seen:
            found = self.engine.encode_images([queries[at].reference for at in seen], errors="return")
            for place, at in enumerate(seen):
                rows[at] = None if place in found.failed else found.rows[place]
        return rows

    def _hits(self, query: Asked, found: Found, at: int) -> Hits:
        """The answer to one query: without a refined Hit, with what is to be said about the reference."""
        wish, items, own = self.wish, found.items[at], query.own
        name = FileName(query.reference)

        def is_same(place: int) -> bool:
            if found.same[at, place]:
                return True
            # A path of another machine may be that of another picture here.
            here = found.elsewhere is None or not found.elsewhere[at, place]
            return here and name.is_of(items[place].source)

        others = [place for place, item in enumerate(items) if item.id != own]
        if not wish.leave_reference_out:  # one more may have been asked for, for another query's sake
            others = others[: wish.k]
        same = [place for place in others if is_same(place)]
        left_out = set(same) if wish.leave_reference_out else ()
        chosen = [place for place in others if place not in left_out][: wish.k]
        hits = made_hits(items, found.top, at, chosen, self.engine.manifest.terms)
        reference = items[same[0]].id if same else None
        unknown = () if query.text is None else query.text.unknown
        explainer = partial(self.explainer, query.reference, query.said, wish.balance)
        return Hits(hits, unknown, reference, wish.balance, explainer, found.coverage, found.generations)


def _bare(error: CirError) -> CirError:
    """The error without the number that the encoder counted."""
    return error.__cause__ if isinstance(error.__cause__, CirError) else error


def numbered(answers: Iterator[Hits | CirError]) -> Iterator[Hits | CirError]:
    """The answers, with the number of its query before what each error says."""
    for number, answer in enumerate(answers):
        if isinstance(answer, CirError):
            told: Any = type(answer)(f"query {number}: {answer}")
            told.__cause__ = answer
            yield told
        else:
            yield answer


def raised(answers: Iterator[Hits | CirError]) -> Iterator[Hits]:
    """The answers up to the first error, which is raised."""
    for answer in answers:
        if isinstance(answer, CirError):
            raise answer
        yield answer
