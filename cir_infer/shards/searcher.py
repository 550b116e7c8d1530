"""A searcher over shards: a query is composed once, each shard answers its best, the best of those win.

Hits are ordered by score, then by the shard's place, then by the row in it: as in one gallery that holds the
shards' rows one after the other.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from cir_infer.bundle import Bundle
from cir_infer.bundle.orientation import orientation_of_rows
from cir_infer.engine import Engine
from cir_infer.errors import CirError, GalleryError, MissingShard, ShardError, UsageError, shown
from cir_infer.gallery import Gallery
from cir_infer.gallery.filters.filters import Where
from cir_infer.gallery.metadata.values import storable
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.arguments import checked_count, checked_flag, checked_seconds, checked_word, plain_path
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.fork import PerProcess
from cir_infer.processes.threads import Threads
from cir_infer.processes.users import Users
from cir_infer.scoring.balance import Balance, checked_balance
from cir_infer.scoring.contract import QueryTerms
from cir_infer.searcher import Queries
from cir_infer.searching.answering import Answering, Wish
from cir_infer.searching.exclusion import checked_ids
from cir_infer.searching.found import NO_REFERENCES, Found, Held, References
from cir_infer.searching.vectors import METRICS, Metric, checked_queries, hits_of, vector_terms
from cir_infer.shards.fanout import Counts, Fanout
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.merging import merged
from cir_infer.shards.opening import Opening, compare
from cir_infer.shards.shard import About, LocalShard, Shard
from cir_infer.shards.wire import MOST_HELD, MOST_HITS

if TYPE_CHECKING:
    from cir_infer.explaining.explainer import Explainer

__all__ = ["ShardedSearcher"]

_HELD_BYTES = 32 << 20
"""Rows of items that are asked for together."""

T = TypeVar("T")
Place: TypeAlias = "str | os.PathLike[str]"
One: TypeAlias = "Gallery | Shard | Place"


class ShardedSearcher(Queries):
    """Answers queries over several shards as a `Searcher` does over one gallery. Threads may share one.

    Args:
        bundle: see `Searcher`; None to ask vectors only. Photos are turned upright as the shards' were.
        shards: a sharded gallery or its folder; or a list, for each shard a gallery, its path, the URL
            of a `cir-serve --shard` or another `Shard`, or a list of such that are its replicas.
        device: see `Engine`; not together with an `Engine`.
        scorer: see `cir_infer.scoring.make_scorer`, for galleries of this process.
        threads: CPU threads of the engine, and of a call of each gallery in this process; None for every
            core that the process may use, shared out among the shards.
        replicas: how often each gallery that is named once is asked independently.
        deadline: seconds for the shards to answer, once the query is composed; None for as long as it takes.
        partial: what becomes of an answer to which a shard contributes nothing in time: "error" raises a
            `ShardError`, "allow" gives it, and `Hits.coverage` and `Hits.generations` say what is missing.

    Attributes:
        engine: the engine.
        shards: the replicas of each shard, in order.

    Raises:
        BundleError, DeviceError: see `Engine`.
        GalleryError: a gallery is missing, damaged, of another bundle, not like the others, or there twice.
        ShardError: no replica of a shard can be reached.
        UsageError: contradicting arguments.
    """

    def __init__(
        self,
        bundle: Engine | Bundle | Place | None,
        shards: ShardedGallery | Place | Sequence[One | Sequence[One]],
        device: str = "auto",
        scorer: str = "auto",
        threads: int | None = None,
        *,
        replicas: int = 1,
        deadline: float | None = None,
        partial: Literal["error", "allow"] = "error",
    ) -> None:
        self._owned: list[Any] = []
        given = str(Path(plain_path(shards)).absolute()) if isinstance(shards, (str, os.PathLike)) else shards
        self._made_of = given, scorer, threads, replicas, deadline, partial
        self._users = Users(self._give_back, _refusal)
        replicas = checked_count("replicas", replicas)
        if deadline is not None:
            deadline = checked_seconds("deadline", deadline, None, ", or None")
        self._allowed = checked_word("partial", partial, ("error", "allow")) == "allow"
        try:
            if not (bundle is None or isinstance(bundle, (Engine, Bundle))):
                bundle = Bundle(bundle)
            opening = Opening(scorer, threads, self._owned)
            groups = opening.groups(shards, replicas)
            self._common = compare(groups, deadline)
            if isinstance(bundle, Bundle):
                turned = orientation_of_rows(bundle.manifest, self._common.fingerprint)
                bundle = Engine(bundle, device, threads, exif_orientation=turned)
                self._owned.append(bundle)
            self._engine = bundle
            if bundle is not None:
                opening.check(self._common, bundle)
        except BaseException:
            self.close()
            raise
        self._groups = groups
        self.shards: tuple[tuple[Shard, ...], ...] = tuple(group.shards for group in groups)
        self._fanout: PerProcess[Fanout] = PerProcess(lambda: Fanout(groups, deadline))
        self._beside: PerProcess[Threads] = PerProcess(lambda: Threads(available_cpus() + 4))

    # ---- its life

    def close(self) -> None:
        """Give back what this searcher opened itself, once calls that are under way are answered."""
        self._users.end()

    def _give_back(self) -> None:
        for name in ("_fanout", "_beside"):
            held = getattr(self, name).drop() if hasattr(self, name) else None
            if held is not None:
                held.close()
        with suppress(IndexError):
            while True:
                self._owned.pop().close()

    def __enter__(self) -> ShardedSearcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what is pickled for another process, open the same shards again."""
        return _reopened, (self._engine, self._made_of)

    def __len__(self) -> int:
        return sum(group.size for group in self._groups)

    def __repr__(self) -> str:
        engine = "" if self._engine is None else f"{self._engine!r} "
        return f"<ShardedSearcher {engine}over {self._said}{', closed' if self._users.ended else ''}>"

    @property
    def _said(self) -> str:
        return f"{len(self.shards):,} shards"

    @property
    def engine(self) -> Engine:  # type: ignore[override]
        """The engine.

        Raises:
            UsageError: there is none.
        """
        if self._engine is None:
            raise UsageError("this searcher has no bundle, so it can be asked vectors only")
        return self._engine

    @property
    def counts(self) -> Counts:
        """What had to be done for the answers of this process so far: hedged and repeated calls, say."""
        return self._fanout.get().counts

    # ---- asking; `Queries` has the rest

    def search_vectors(
        self,
        vectors: Any,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        metric: Metric = "cosine",
    ) -> list[Hits]:
        """The k items whose vectors are nearest to each of some; see `VectorSearcher.search_vectors`."""
        k, ids = checked_count("k", k), checked_ids(exclude)
        return self._users.run(self._nearest, vectors, k, where, ids, checked_word("metric", metric, METRICS))

    def _nearest(
        self, vectors: Any, k: int, where: Where | None, ids: list[str], metric: Metric
    ) -> list[Hits]:
        source = self._source(where, ids)
        answers: list[Hits] = []
        # As many as any shard answers, be it elsewhere; half of that, since it may have grown.
        largest = max(1, *(group.size for group in self._groups))
        most = max(1, MOST_HITS // 2 // min(k, largest))
        for asked in vector_terms(checked_queries(vectors, self._common.dimension), metric, most):
            answers += hits_of(source.search(asked.terms, k), asked)
        return answers

    def item(self, id: str) -> Hit:
        """An item of one of the shards as a Hit, to refine it without a query before.

        Raises:
            GalleryError: there is no such item.
            ShardError: a shard that could have it does not answer.
        """
        return self._users.run(self._item, id)

    def _item(self, id: str) -> Hit:
        (held,) = self._source().held([id])
        if isinstance(held, CirError):
            raise held
        item = held.told()
        return Hit(item.id, metadata=item.metadata, source=item.source)

    def warm_up(self, k: int = 10) -> None:
        """Do now what the first query would do, here and in every replica of every shard.

        Args:
            k: as later queries will ask for.

        Raises:
            CirError: see `Searcher.warm_up`; and whatever keeps a replica from answering.
        """
        self._users.run(self._warm, checked_count("k", k))

    def _warm(self, k: int) -> None:
        samples = self.engine.warm_up()
        terms = self.engine.compose(samples.reference, samples.text)
        for replicas in self.shards:
            for shard in replicas:
                shard.search(terms, k, None, [])

    def describe(self) -> dict[str, Any]:
        """Engine and shards, as plain values that JSON can hold."""
        return self._users.run(self._described)

    def _described(self) -> dict[str, Any]:
        about = {} if self._engine is None else self._engine.describe()
        shards = [{"places": [s.place for s in group.shards], "rows": group.size} for group in self._groups]
        return {**about, "rows": len(self), "shards": shards}

    # ---- answering

    def _answering(
        self, k: Any, where: Any, exclude: Any, leave_reference_out: Any, balance: Any
    ) -> Answering:
        k, ids = checked_count("k", k), checked_ids(exclude)
        left_out = checked_flag("exclude_reference", leave_reference_out)
        factors = checked_balance(balance, self.engine.manifest.terms)
        wish = Wish(k, left_out, factors)
        return Answering(self.engine, self._source(where, ids), self._beside.get, wish, self._explains)

    def _explainer(self, reference: Any, text: Any, balance: Balance) -> Explainer:
        from cir_infer.explaining.explainer import Explainer

        return Explainer(self.engine, self._source, self._said, reference, text, balance)

    def _source(self, where: Where | None = None, exclude: Sequence[str] = ()) -> _Shards:
        return _Shards(self._fanout, self._common, self._allowed, where, exclude)


def _refusal() -> UsageError:
    return UsageError("this searcher is closed; make another")


def _reopened(engine: Engine | None, made_of: tuple[Any, ...]) -> ShardedSearcher:
    shards, scorer, threads, replicas, deadline, partial = made_of
    return ShardedSearcher(
        *(engine, shards, "auto", scorer, threads), replicas=replicas, deadline=deadline, partial=partial
    )


def _unheld(item: object) -> GalleryError:
    return GalleryError(f"no shard holds an item {shown(item)} (any more)")


class _Shards:
    """The shards, asked with one filter: a `Source`."""

    def __init__(
        self,
        fanout: PerProcess[Fanout],
        common: About,
        allowed: bool,
        where: Where | None,
        exclude: Sequence[str],
    ) -> None:
        self._fanout, self._fingerprint, self._allowed = fanout, common.fingerprint, allowed
        self._together = max(
            1, min(MOST_HELD, _HELD_BYTES // (4 * common.dimension * common.tokens_per_item))
        )
        self._where, self._exclude = where, exclude
        self._began: float | None = None

    size = sys.maxsize
    chained = False

    def begun(self) -> _Shards:
        """See `Source`: one deadline for all that is asked for these queries."""
        fresh = copy(self)
        fresh._began = time.monotonic()
        return fresh

    def held(self, items: Sequence[str]) -> list[Held | CirError]:
        """See `Source`."""
        wanted = list(dict.fromkeys(item for item in items if isinstance(item, str) and storable(item)))
        known: dict[str, Held | CirError] = {}
        for start in range(0, len(wanted), self._together):
            part = wanted[start : start + self._together]
            known.update(zip(part, self._asked(part), strict=True))
        return [(known.get(item) if isinstance(item, str) else None) or _unheld(item) for item in items]

    def _asked(self, items: list[str]) -> list[Held | CirError]:
        try:
            parts = self._fanout.get().ask(partial(self._held, items), 0)
        except CirError as error:
            return [error] * len(items)
        missing = [part for part in parts if isinstance(part, MissingShard)]
        there = [part for part in parts if not isinstance(part, MissingShard)]
        found: list[Held | CirError] = []
        for at, item in enumerate(items):
            held = next((part[at] for part in there if part[at] is not None), None)
            found.append(held or (self._error(missing) if missing else _unheld(item)))
        return found

    def search(self, terms: QueryTerms, k: int, references: References = NO_REFERENCES) -> Found:
        """See `Source`."""
        work = partial(self._search, terms, k, references)
        parts = self._fanout.get().ask(work, max(terms.queries, 1), began=self._began)
        missing = [part for part in parts if isinstance(part, MissingShard)]
        if missing and (not self._allowed or len(missing) == len(parts)):
            raise self._error(missing)
        found = [None if isinstance(part, MissingShard) else part for part in parts]
        seen = 0
        for group, part in zip(self._fanout.get().groups, found, strict=True):
            if part is not None:
                group.size = part.size
                seen += part.size
        if seen == 0 and not missing:
            raise GalleryError("every shard is empty; add images with cir-index or add()")
        unseen = sum(part.rows for part in missing)
        # A shard that is missing and was empty when it was last seen may have items by now.
        coverage = min(seen / max(seen + unseen, 1), 1 - 1e-9) if missing else 1.0
        return merged(found, k, coverage)

    def search_chained(self, image: Any, row: Any, text: Any, k: int) -> Found:
        """Nothing that shards can do."""
        raise NotImplementedError

    def _search(
        self, terms: QueryTerms, k: int, references: References, shard: Shard, left: float | None
    ) -> Found:
        found = shard.search(terms, k, self._where, self._exclude, references, left)
        self._check(shard, found.fingerprint)
        if isinstance(shard, LocalShard):
            return found
        return found._replace(elsewhere=np.ones(found.top.rows.shape, np.bool_))

    def _held(self, items: list[str], shard: Shard, left: float | None) -> list[Held | None]:
        found = shard.held(items, left)
        for held in found:
            if held is not None:
                self._check(shard, held.fingerprint)
        return found

    def _check(self, shard: Shard, fingerprint: str | None) -> None:
        """Refuse what a shard says of rows of another bundle than the query's."""
        if fingerprint != self._fingerprint:
            raise GalleryError(
                f"{shard.place} has rows of {shown(fingerprint, 80)} by now, and the query is of "
                f"{shown(self._fingerprint, 80)}; open a searcher of the new bundle"
            )

    def _error(self, missing: Sequence[MissingShard]) -> ShardError:
        parts = self._fanout.get().groups
        told = "; ".join(f"shard {one.number} ({one.place}): {one.reason}" for one in missing[:3])
        more = f"; and {len(missing) - 3:,} more" if len(missing) > 3 else ""
        unseen, rows = sum(one.rows for one in missing), sum(group.size for group in parts)
        return ShardError(
            f"{len(missing):,} of {len(parts):,} shards did not answer: {told}{more}. {unseen:,} of {rows:,} "
            "items were not looked at; start what is missing, give it replicas or more time (deadline), or "
            'take answers without it (partial="allow")',
            missing=missing,
        )
