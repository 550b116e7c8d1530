"""What a protocol makes of a data set: galleries, queries, and what counts as correct.

A protocol is one public repository's way of evaluating on one data set: which images form the gallery,
how captions become queries, whether the reference may be returned. `cir_bench.accuracy` does the rest,
alike for all. Galleries and queries refer to each other by row numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DatasetError, shown
from cir_infer.inputs.images import ImageLike

__all__ = ["Part", "Protocol", "Query", "RowNumbers"]

RowNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Query:
    """One query against the gallery of its part.

    Attributes:
        key: names it in reports and submissions, e.g. CIRR's pair id; unique within its part.
        reference: the row of its reference image.
        texts: its captions, as the engine takes them (a system joins several as its authors do).
        correct: rows that answer it; empty on a split without published answers.
        gains: what finding each of `correct` is worth, in (0, 1]; None: 1 each. CIRR's soft targets.
        also: rows that are correct under another criterion, by its name (MIT-States: "adjective", "noun").
        subset: the rows among which the subset metric ranks (CIRR); None where there is no such metric.
        kind: what is modified, where the data set says so (the scenes); "" otherwise.
        aspects: what the text is about, where the data set says so: each has a mean precision of its own
            (CIRCO: "cardinality", "negation", ...).
        negatives: rows that the data set names as wrong answers on purpose; None where it names none.
    """

    key: str
    reference: int
    texts: tuple[str, ...]
    correct: RowNumbers
    gains: npt.NDArray[np.float64] | None = None
    also: Mapping[str, RowNumbers] = field(default_factory=dict)
    subset: RowNumbers | None = None
    kind: str = ""
    aspects: tuple[str, ...] = ()
    negatives: RowNumbers | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """One gallery with its queries: a category of FashionIQ, or a whole split.

    Attributes:
        name: e.g. "dress"; "all" where a split has one part.
        ids: names of the gallery's images, by row.
        images: the images, by row: paths, or arrays for systems on pre-extracted features.
        queries: the queries.
        reference_images: what each row looks like as a reference, by row, where that is another picture
            (CSS from 2D to 3D); None: the gallery's own.
        candidates: only the first so many rows can be returned, the others are references; None: all.

    Raises:
        DatasetError: lengths differ, an id repeats, a query names a row that does not exist, or some queries
            have answers and others none.
    """

    name: str
    ids: tuple[str, ...]
    images: Sequence[ImageLike]
    queries: tuple[Query, ...]
    reference_images: Sequence[ImageLike] | None = None
    candidates: int | None = None

    def __post_init__(self) -> None:
        rows = len(self.ids)
        if len(self.images) != rows or len(set(self.ids)) != rows:
            raise DatasetError(
                f"{self.name}: {len(self.images)} images under {len(set(self.ids))} different ids "
                f"({rows} in all); expected one image an id"
            )
        if self.reference_images is not None and len(self.reference_images) != rows:
            raise DatasetError(
                f"{self.name}: {len(self.reference_images)} pictures of references for {rows} rows"
            )
        for query in self.queries:
            named = [np.array([query.reference]), query.correct, *query.also.values()]
            named += [some for some in (query.subset, query.negatives) if some is not None]
            for numbers in named:
                if numbers.size and not 0 <= numbers.min() <= numbers.max() < rows:
                    raise DatasetError(
                        f"{self.name}, query {query.key}: a row outside the gallery of {rows} images"
                    )
        unanswered = [query.key for query in self.queries if not query.correct.size]
        if 0 < len(unanswered) < len(self.queries):
            raise DatasetError(
                f"{self.name}: {len(unanswered)} of {len(self.queries)} queries have no answer in the "
                f"gallery, e.g. query {shown(unanswered[0])}; expected one for each, or for none"
            )

    @property
    def answered(self) -> bool:
        """Whether its queries have answers, so that they can be judged."""
        return all(query.correct.size for query in self.queries)


@dataclass(frozen=True)
class Protocol:
    """How one repository evaluates on one data set.

    Attributes:
        name: "DATASET/REPOSITORY", e.g. "fashioniq/artemis".
        source: whose protocol it is and what is particular about it, in a line.
        splits: the splits that it knows; the first is the default.
        ks: K of Recall@K.
        measure: the metrics whose mean is the one figure that the authors select models by, e.g.
            ("R@10", "R@50").
        load: (root of the data set, split) -> its parts. Raises `DatasetError`.
        reference_excluded: whether the reference is taken out of its query's ranking.
        subset_ks: K of Recall_subset@K.
        subset_depth: the subset metric sees only the first so many of the ranking; None: all of it.
        map_ks: K of mAP@K, the mean average precision over all correct rows; 0 stands for the whole ranking.
        aspect_k: K of the mean average precision of each of `Query.aspects`; 0 where there are none.
        negative_ks: K of what the first K hold of `Query.negatives`.
        submission: the version that CIRR's test server's files name, or "circo", for splits without answers.
    """

    name: str
    source: str
    splits: tuple[str, ...]
    ks: tuple[int, ...]
    measure: tuple[str, ...]
    load: Callable[[Path, str], list[Part]]
    reference_excluded: bool = True
    subset_ks: tuple[int, ...] = ()
    subset_depth: int | None = None
    map_ks: tuple[int, ...] = ()
    aspect_k: int = 0
    negative_ks: tuple[int, ...] = ()
    submission: str | None = None
