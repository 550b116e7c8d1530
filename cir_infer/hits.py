"""The answer to a query: hits, best first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, overload

from cir_infer.console.tables import format_table

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
    """

    id: str
    rank: int = 0
    score: float = 0.0
    terms: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None

    def __getattr__(self, name: str) -> float:
        terms = self.__dict__.get("terms", {})
        if name not in terms:
            raise AttributeError(f"a Hit has no attribute {name!r}; its terms are {sorted(terms)}")
        return float(terms[name])

    def __hash__(self) -> int:
        return hash((self.id, self.rank, self.score))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `cir-query --json` prints them."""
        return {
            "id": self.id,
            "rank": self.rank,
            "score": self.score,
            "terms": dict(self.terms),
            "metadata": dict(self.metadata),
            "source": self.source,
        }


class Hits(Sequence[Hit]):
    """Hits, best first. Indexing gives a `Hit`, a slice gives `Hits`, printing gives a table.

    Attributes:
        unknown_words: words of the text that the model does not know; the answer ignores them.
        reference_id: the id of an item that shows the reference image itself, by its row or its file: the
            best of those among the hits, or of those left out with `exclude_reference`; None where there
            is none.
        balance: the factors of terms, by name, that the query asked for; terms and scores of the hits hold
            them. Empty where it asked for none.
    """

    def __init__(
        self,
        hits: Iterable[Hit],
        unknown_words: Iterable[str] = (),
        reference_id: str | None = None,
        balance: Mapping[str, float] | None = None,
    ) -> None:
        self._hits = tuple(hits)
        self.unknown_words = tuple(unknown_words)
        self.reference_id = reference_id
        self.balance = dict(balance or {})

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

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Hits: ...

    def __getitem__(self, index: int | slice) -> Hit | Hits:
        if isinstance(index, slice):
            return Hits(self._hits[index], self.unknown_words, self.reference_id, self.balance)
        return self._hits[index]

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
                f"{hit.score:.4f}",
                *(f"{hit.terms[name]:.4f}" for name in names),
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
