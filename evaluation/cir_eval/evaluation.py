"""A bundle under a protocol: encode, compose, rank with the runtime's scorer, judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cir_eval.encoding import encode_resumably
from cir_eval.metrics import Outcome, judge, members_of, metrics_of, ranking_of
from cir_eval.protocols.contract import Part, Protocol, RowNumbers
from cir_infer.console.progress import progress_bar
from cir_infer.engine import Engine
from cir_infer.errors import UsageError, shown
from cir_infer.gallery.rows.vectors import quantise
from cir_infer.scoring import make_scorer
from cir_infer.scoring.contract import QueryTerms, Rows, Scorer

__all__ = ["ROW_TYPES", "Evaluated", "Options", "evaluate"]

ROW_TYPES = ("float32", "float16", "int8")
_WHOLE_RANKING = 20_000
_KEPT = 50
_CHUNK = 64
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How to evaluate.

    Attributes:
        row_type: how gallery rows are stored for scoring.
        scorer: see `cir_infer.scoring.make_scorer`.
        batch_size: images in one run of the graph.
        authors_batch: texts are encoded in batches of so many, in the data set's order, and the padding
            is read as text: what naver/artemis does with its LSTM. None encodes each text for itself.
        folder: where to keep embeddings, so that a stopped run goes on; None keeps nothing.
        alone: rank by the picture alone and by the text alone, too.
    """

    row_type: str = "float32"
    scorer: str = "auto"
    batch_size: int = 32
    authors_batch: int | None = None
    folder: Path | None = None
    alone: bool = False


@dataclass(frozen=True, eq=False)
class Evaluated:
    """One part, evaluated.

    Attributes:
        part: the gallery and its queries.
        rows: float32 (N, D), as encoded.
        rankings: (Q, n) row numbers, best first, as the protocol ranks them, -1 beyond their end; at most
            the first 50.
        scores: float32 (Q, n), of the same rows.
        members: one a query: the rows of its subset as the protocol ranks them, of the whole ranking.
        outcomes: one a query; empty on a split without answers.
        alone: outcomes by "text" and "image": what the same queries are worth with one half of them only.
    """

    part: Part
    rows: Floats
    rankings: RowNumbers
    scores: Floats
    members: tuple[RowNumbers, ...]
    outcomes: tuple[Outcome, ...]
    alone: Mapping[str, tuple[Outcome, ...]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """See `metrics.metrics_of`; empty on a split without answers."""
        return metrics_of(self.outcomes) if self.outcomes else {}


def evaluate(engine: Engine, protocol: Protocol, part: Part, options: Options) -> Evaluated:
    """Rank every query of a part and judge the rankings.

    Up to 20,000 rows the whole ranking is made, so that the ranks of all targets are known; beyond that
    only as much of it as the metrics need.

    Raises:
        UsageError: an unknown row type.
        CirError: an image or text cannot be used, or the device failed.
    """
    if options.row_type not in ROW_TYPES:
        raise UsageError(f"row type {shown(options.row_type)}; expected one of {', '.join(ROW_TYPES)}")
    rows = encode_resumably(
        options.folder,
        f"{part.name}.rows",
        part.images,
        part.ids,
        f"{engine.fingerprint} {_backend(engine)}",
        lambda images: engine.encode_images(images, options.batch_size),
    )
    reference, text = _queries(engine, part, rows, options)
    scorer = make_scorer(_stored(rows, options.row_type), options.scorer)
    depth = _depth(protocol, part, len(rows))
    judged = part.answered
    kept = min(_KEPT, depth)
    rankings = np.full((len(part.queries), kept), -1, np.int64)
    scores = np.full((len(part.queries), kept), -np.inf, np.float32)
    members: list[RowNumbers] = []
    outcomes: list[Outcome] = []
    for number, found, values in _ranked(scorer, engine.compose(reference, text), depth, part.name):
        query = part.queries[number]
        ranking = ranking_of(protocol, query, found, part.candidates)
        if judged:
            outcomes.append(judge(protocol, query, ranking))
        members.append(members_of(protocol, query, ranking))
        best = ranking[:kept]
        rankings[number, : len(best)] = best
        scores[number, : len(best)] = values[np.isin(found, best)]
    alone = {}
    if options.alone and judged:
        for half, terms in _halves(engine, part, rows, reference, text).items():
            alone[half] = tuple(
                judge(protocol, part.queries[n], ranking_of(protocol, part.queries[n], f, part.candidates))
                for n, f, _ in _ranked(scorer, terms, depth, f"{part.name}, {half} alone")
            )
    return Evaluated(part, rows, rankings, scores, tuple(members), tuple(outcomes), alone)


def _ranked(
    scorer: Scorer, terms: QueryTerms, depth: int, name: str
) -> Iterator[tuple[int, RowNumbers, Floats]]:
    """Number, rows and scores of every query, best first."""
    starts = range(0, terms.queries, _CHUNK)
    for start in progress_bar(starts, terms.queries, f"{name}: ranking", "query", step=_CHUNK):
        top = scorer.topk(terms[start : start + _CHUNK], depth)
        for number, (found, values) in enumerate(zip(top.rows, top.scores, strict=True), start=start):
            yield number, found, values


def _halves(
    engine: Engine, part: Part, rows: Floats, reference: Floats | None, text: Floats | None
) -> dict[str, QueryTerms]:
    """The queries with one half only.

    The picture alone is the cosine of the reference's own row; of a row of several vectors each of them asks,
    and an item's score is the sum of what its best vectors answer. The text alone is the same composition
    with the mean of all references in the place of each, which says nothing of any of them.
    """
    as_row = reference is not None and engine.row_is_reference  # also of another picture than the gallery's
    own = reference if as_row else rows[[query.reference for query in part.queries]]
    assert own is not None
    own = own.reshape(len(own), -1, own.shape[-1])
    own = own / np.maximum(np.linalg.norm(own, axis=2, keepdims=True), 1e-12)
    names = tuple(f"similarity_{number}" for number in range(own.shape[1]))
    picture = QueryTerms(own, np.ones_like(own), names)
    mean = None if reference is None else np.broadcast_to(reference.mean(0), reference.shape)
    return {"text": engine.compose(mean, text), "image": picture}


def _queries(
    engine: Engine, part: Part, rows: Floats, options: Options
) -> tuple[Floats | None, Floats | None]:
    """Embeddings of all references and texts."""
    wanted = [query.reference for query in part.queries]
    reference: Floats | None = None
    if engine.needs_reference and engine.row_is_reference and part.reference_images is None:
        reference = rows[wanted]
    elif engine.needs_reference:
        unique = sorted(set(wanted))
        pictures = part.images if part.reference_images is None else part.reference_images
        graph = "image" if engine.row_is_reference else "reference"
        encode = engine.encode_images if engine.row_is_reference else engine.encode_references
        encoded = encode_resumably(
            options.folder,
            f"{part.name}.references",
            [pictures[row] for row in unique],
            [part.ids[row] for row in unique],
            f"{engine.fingerprint} {_graph_digest(engine, graph)} {_backend(engine)}",
            lambda images: encode(images, options.batch_size),
        )
        reference = encoded[np.searchsorted(unique, wanted)]
    return reference, _encode_texts(engine, [query.texts for query in part.queries], options)


def _encode_texts(engine: Engine, texts: Sequence[tuple[str, ...]], options: Options) -> Floats | None:
    if not engine.needs_text:
        return None
    asked = [list(captions) if len(captions) > 1 else captions[0] for captions in texts]
    if options.authors_batch is not None:
        return engine.encode_texts(asked, options.authors_batch, pad_to_batch=True)
    return engine.encode_texts(asked)


def _stored(rows: Floats, row_type: str) -> Rows:
    """Rows as a gallery of this row type would hold them."""
    if row_type == "int8":
        return Rows.of(*quantise(rows))
    return Rows.of(np.ascontiguousarray(rows.astype(row_type)))


def _backend(engine: Engine) -> str:
    """What runs the graphs: another makes other embeddings of a bundle, which may be what is asked for."""
    about = engine.describe()
    return f"{about['device']} {about['backend'].get('library')}"


def _graph_digest(engine: Engine, name: str) -> str:
    manifest = engine.manifest
    return manifest.members[manifest.graphs[name]].sha256


def _depth(protocol: Protocol, part: Part, rows: int) -> int:
    """How much of each ranking is made; one more than is needed, for the reference that may leave it."""
    whole = 0 in protocol.map_ks or (bool(protocol.subset_ks) and not protocol.subset_depth)
    if rows <= _WHOLE_RANKING or whole:
        return rows
    others = 0 if part.candidates is None else rows - part.candidates
    return min(rows, max(*protocol.ks, *protocol.map_ks, protocol.subset_depth or 0, _KEPT) + 1 + others)
