"""A searcher that goes over to other shards by itself: each query is of the old ones or of the new ones."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from cir_infer.engine import Engine
from cir_infer.errors import CirError, GalleryError, ShardError, UsageError
from cir_infer.gallery.arguments import checked_path
from cir_infer.gallery.disk import files
from cir_infer.gallery.filters.filters import Where
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.texts import Text
from cir_infer.scoring.balance import Balance
from cir_infer.searcher import Queries
from cir_infer.searching.answering import Answering
from cir_infer.searching.asked import Reference
from cir_infer.searching.vectors import Metric
from cir_infer.shards.listing import FILE, read_listing
from cir_infer.shards.searcher import ShardedSearcher

__all__ = ["FollowingSearcher", "follow_folder"]

T = TypeVar("T")


class FollowingSearcher(Queries):
    """Asks the newest version of some shards. Threads may share one.

    Every query is answered by one version from its beginning to its end. A new one is looked for every
    second, opened beside the old one by the query that notices it, and asked from then on. The old one is
    closed when the next but one comes and nobody asks it any more. A query that fails because its version has
    just been removed is asked again of the new one.

    Args:
        version: says which version is the newest; another value means another one.
        opened: opens the newest.
        every: seconds between two looks.

    Attributes:
        changes: how often it went over.
        behind: what keeps it from the newest version, which is tried again; None where it asks that.

    Raises:
        CirError: see `ShardedSearcher`.
    """

    def __init__(
        self, version: Callable[[], Hashable], opened: Callable[[], ShardedSearcher], every: float = 1.0
    ) -> None:
        self._version, self._opened, self._every = version, opened, every
        self._lock, self._following = threading.Lock(), threading.Lock()
        self._known = version()
        self._current: ShardedSearcher | None = opened()
        self._before: ShardedSearcher | None = None
        self._asking: dict[ShardedSearcher, int] = {}
        self._ended: set[ShardedSearcher] = set()
        self._looked = time.monotonic()
        self.changes = 0
        self.behind: CirError | None = None

    def close(self) -> None:
        """Close what is open."""
        with self._lock:
            open_ones = {self._before, self._current, *self._ended}
            self._before = self._current = None
            self._ended.clear()
        for searcher in open_ones:
            if searcher is not None:
                searcher.close()

    def __enter__(self) -> FollowingSearcher:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.current())

    def __repr__(self) -> str:
        return f"<FollowingSearcher of {self._current!r}>"

    def current(self, now: bool = False) -> ShardedSearcher:
        """The searcher over the newest version.

        Args:
            now: look for a new one whenever the last look was.

        Raises:
            UsageError: this is closed.
        """
        searcher = self._open()
        due = now or time.monotonic() - self._looked >= self._every
        # While one opens the newest, others ask the one that is open.
        if due and self._following.acquire(blocking=now):
            try:
                self._looked = time.monotonic()
                self._follow()
                self.behind = None
            except CirError as error:  # it is being changed, say; the one that is open goes on
                self.behind = error
            finally:
                self._following.release()
            searcher = self._open()
        return searcher

    def _open(self) -> ShardedSearcher:
        with self._lock:
            if self._current is None:
                raise UsageError("this searcher is closed; make another")
            return self._current

    def _follow(self) -> None:
        version = self._version()
        if version == self._known:
            return
        fresh = self._opened()
        with self._lock:
            done = fresh if self._current is None else self._before
            if self._current is not None:
                self._before, self._current, self._known = self._current, fresh, version
                self.changes += 1
            if done is not None and self._asking.get(done):
                self._ended.add(done)
                done = None
        if done is not None:
            done.close()

    def _asked(self, ask: Callable[[ShardedSearcher], T]) -> T:
        searcher = self.current()
        try:
            return self._held(searcher, ask)
        except (ShardError, GalleryError, UsageError):
            other = self.current(now=True)
            if other is searcher:
                raise
            return self._held(other, ask)

    def _held(self, searcher: ShardedSearcher, ask: Callable[[ShardedSearcher], T]) -> T:
        """Ask one that stays open meanwhile."""
        with self._lock:
            self._asking[searcher] = self._asking.get(searcher, 0) + 1
        try:
            return ask(searcher)
        finally:
            with self._lock:
                self._asking[searcher] -= 1
                idle = not self._asking[searcher]
                if idle:
                    del self._asking[searcher]
                close = idle and searcher in self._ended
                if close:
                    self._ended.discard(searcher)
            if close:
                searcher.close()

    @property
    def engine(self) -> Engine:  # type: ignore[override]
        """That of the newest version."""
        return self.current().engine

    def query(
        self,
        image: Reference,
        text: Text | None,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        exclude_reference: bool = False,
        balance: Balance | None = None,
    ) -> Hits:
        """See `Queries.query`."""
        left_out = None if exclude is None else list(exclude)
        return self._asked(lambda one: one.query(image, text, k, where, left_out, exclude_reference, balance))

    def search_vectors(
        self,
        vectors: Any,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        metric: Metric = "cosine",
    ) -> list[Hits]:
        """See `ShardedSearcher.search_vectors`."""
        left_out = None if exclude is None else list(exclude)
        return self._asked(lambda one: one.search_vectors(vectors, k, where, left_out, metric))

    def item(self, id: str) -> Hit:
        """See `ShardedSearcher.item`."""
        return self._asked(lambda one: one.item(id))

    def warm_up(self, k: int = 10) -> None:
        """See `ShardedSearcher.warm_up`."""
        self._asked(lambda one: one.warm_up(k))

    def _answering(
        self, k: Any, where: Any, exclude: Any, leave_reference_out: Any, balance: Any
    ) -> Answering:
        return self.current()._answering(k, where, exclude, leave_reference_out, balance)

    def _explainer(self, reference: Any, text: Any, balance: Balance) -> Any:
        return self.current()._explainer(reference, text, balance)


def follow_folder(
    path: str | Path, bundle: str | Path | Engine | None = None, every: float = 1.0, **options: Any
) -> FollowingSearcher:
    """A searcher over a sharded gallery's folder that follows its changes of shards and bundle.

    Args:
        path: the folder.
        bundle: see `ShardedSearcher`; None for the one that the folder names, or none where it names none.
        every: seconds between two looks.
        options: of `ShardedSearcher`.

    Raises:
        CirError: see `ShardedSearcher`.
    """
    folder = checked_path("path", path)

    def version() -> Hashable:
        listing = read_listing(folder)
        with files.told_as_gallery_error("looking at it", folder / FILE):
            status = (folder / FILE).stat()
        # What it says tells sets apart, whatever clocks do; the rest tells of a folder in place of another.
        return status.st_dev, status.st_ino, status.st_mtime_ns, listing

    def opened() -> ShardedSearcher:
        chosen = read_listing(folder).bundle if bundle is None else bundle
        return ShardedSearcher(chosen, folder, **options)

    return FollowingSearcher(version, opened, every)
