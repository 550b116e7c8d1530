"""The answer to a query: hits, best first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, overload

from cir_infer.console.figures import decimals
from cir_infer.console.tables import format_table
from cir_infer.errors import CirError, UsageError, shown
from cir_infer.inputs.arguments import checked_number, checked_word

if TYPE_CHECKING:
    from cir_infer.explaining.explanation import Explains, Explanation
    from cir_infer.inputs.images import ImageLike

__all__ = ["Hit", "Hits", "weighted"]


@dataclass(frozen=True)
class Hit:
    """One item of the gallery in the answer to a query. Also a reference for the next query.

    The terms are attributes too: `hit.implicit_similarity`, `hit.explicit_matching` for ARTEMIS.

    Attributes:
        id: the item's id.
        rank: its place, from 1; 0 for an item that was not found by a query (`Searcher.item`).
        score: the sum of the terms.
        terms: each term of the score by name.
        metadata: the item's metadata.
        source: where the item's image came from (a path), None where the gallery does not know.
        tokens: where an item has several vectors, which of them (from 0) gave each term, by the term's name;
            empty where it has one.
    """

    id: str
    rank: int = 0
    score: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> float:
        terms = self.__dict__.get("terms", {})
        if name not in terms:
            raise AttributeError(f"a Hit has no attribute {name!r}; its terms are {sorted(terms)}")
        return float(terms[name])

    def __hash__(self) -> int:
        return hash((self.id, self.rank, self.score))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `cir-query --json` prints them; `tokens` only where there are any."""
        return {
            "id": self.id,
            "rank": self.rank,
            "score": self.score,
            "terms": dict(self.terms),
            "metadata": dict(self.metadata),
            "source": self.source,
            **({"tokens": dict(self.tokens)} if self.tokens else {}),
        }


class Hits(Sequence[Hit]):
    """Hits, best first. Indexing gives a `Hit`, a slice gives `Hits`, printing gives a table.

    Those of a query hold what it was asked with, and its searcher, to be explained; a copy lets go of both.

    Attributes:
        unknown_words: words of the text that the model does not know; all count as one and the same word.
        reference_id: the id of an item that shows the reference image itself, by its row or its file: the
            best of those among the hits, or of those left out with `exclude_reference`; None where there
            is none.
        balance: the factors of terms, by name, that the query asked for; terms and scores of the hits hold
            them. Empty where it asked for none.
        coverage: the part of all items that were looked at. Below 1.0 only where shards did not answer and
            the searcher was told to do without them (`ShardedSearcher`, partial="allow").
        generations: the commit of the gallery that answered; of shards each its own, in order, None for one
            that did not answer. Empty for hits that were made by hand.
    """

    def __init__(
        self,
        hits: Iterable[Hit],
        unknown_words: Iterable[str] = (),
        reference_id: str | None = None,
        balance: Mapping[str, float] | None = None,
        explainer: Callable[[], Explains] | None = None,
        coverage: float = 1.0,
        generations: Iterable[int | None] = (),
    ) -> None:
        self._hits = tuple(hits)
        self.unknown_words = tuple(unknown_words)
        self.reference_id = reference_id
        self.balance = dict(balance or {})
        self.coverage, self.generations = coverage, tuple(generations)
        self._explainer = explainer
        self._explains: Explains | None = None

    @property
    def ids(self) -> list[str]:
        """The ids, best first."""
        return [hit.id for hit in self._hits]

    @property
    def scores(self) -> list[float]:
        """The scores, best first."""
        return [hit.score for hit in self._hits]

    def __len__(self) -> int:
        return len(self._hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: int | slice) -> Hit | Hits:
        if isinstance(index, slice):
            part = Hits(
                *(self._hits[index], self.unknown_words, self.reference_id, self.balance, self._explainer),
                *(self.coverage, self.generations),
            )
            part._explains = self._explains
            return part
        return self._hits[index]

    def __getstate__(self) -> dict[str, Any]:
        """Hits travel without the searcher that found them."""
        return {**self.__dict__, "_explainer": None, "_explains": None}

    def explain(self, hit: int | Hit, image: ImageLike | None = None, progress: bool = False) -> Explanation:
        """Why a hit has its score: what parts of both images and which words made it (docs/explanations.md).

        Args:
            hit: its place among these hits, from 0, or one of them.
            image: its picture, where the gallery's `source` cannot be read.
            progress: show a bar where pictures are painted over.

        Raises:
            GalleryError: it is not in the gallery any more, or its row is another by now.
            ImageError: its picture, or that of the reference, cannot be read or is another by now.
            UsageError: the bundle reads no pictures; these hits were made by hand, or have travelled; or the
                searcher is closed.
        """
        chosen = self._one(hit)
        (found,) = self._asked().explain([(chosen, image)], True, progress)
        if isinstance(found, CirError):
            raise found
        return found

    @overload
    def explain_all(
        self, errors: Literal["raise"] = "raise", progress: bool = False
    ) -> list[Explanation]: ...

    @overload
    def explain_all(
        self, errors: Literal["return"], progress: bool = False
    ) -> list[Explanation | CirError]: ...

    def explain_all(
        self, errors: Literal["raise", "return"] = "raise", progress: bool = False
    ) -> list[Explanation] | list[Explanation | CirError]:
        """Why each hit has its score, see `explain`; their images are encoded together.

        Args:
            errors: "raise" the error of the first hit that cannot be explained, or "return" it in its place.
            progress: show a bar where pictures are painted over.

        Raises:
            CirError: see `explain`.
        """
        returned = checked_word("errors", errors, ("raise", "return")) == "return"
        found = self._asked().explain([(hit, None) for hit in self._hits], True, progress)
        for one in found:
            if isinstance(one, CirError) and not returned:
                raise one
        return found

    def _one(self, hit: int | Hit) -> Hit:
        if isinstance(hit, Hit):
            if hit not in self._hits:
                raise UsageError(
                    f"{shown(hit.id)} is none of these {len(self):,} hits; explain it with Searcher.explain"
                )
            return hit
        place = checked_number("hit", hit, least=-len(self), instead=", or a Hit")
        if place >= len(self):
            raise UsageError(f"hit is {shown(place)}; there are {len(self):,} hits, counted from 0")
        return self._hits[place]

    def _asked(self) -> Explains:
        """What knows the question; made on first use and kept, for hits share a part of the work."""
        if self._explains is None:
            if self._explainer is None:
                raise UsageError(
                    "these hits do not know how they were found: they were found by vectors, made by hand, "
                    "copied or pickled; use Searcher.explain(hit, reference, text)"
                )
            self._explains = self._explainer()
        return self._explains

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hits) and self._hits == other._hits

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def __repr__(self) -> str:
        if not self._hits:
            return "no hits"
        names = list(self._hits[0].terms) if len(self._hits[0].terms) > 1 else []
        titles = [f"{name.replace('_', ' ')}{weighted(self.balance.get(name))}" for name in names]
        score = "score" if names else f"score{''.join(map(weighted, self.balance.values()))}"
        header = ["rank", score, *titles, "id", "metadata"]
        rows = [
            [
                str(hit.rank),
                decimals(hit.score, 4),
                *(decimals(hit.terms[name], 4) for name in names),
                hit.id,
                _metadata(hit.metadata),
            ]
            for hit in self._hits
        ]
        return format_table(header, rows, right=range(2 + len(names)))


def weighted(factor: float | None) -> str:
    """What to write behind the name of a term that a query's balance has multiplied."""
    return "" if factor is None else f" x {factor:g}"


def _metadata(metadata: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key}: {str(value)[:60]}" for key, value in islice(metadata.items(), 20))
    return text if len(text) <= 60 else text[:57] + "..."
