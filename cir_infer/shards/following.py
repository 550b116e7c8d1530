"""A searcher that goes over to other shards by itself: each query is of the old ones or of the new ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cir_infer.engine import Engine
from cir_infer.errors import CirError, GalleryError, ShardError, UsageError
from cir_infer.gallery.arguments import checked_path
from cir_infer.gallery.disk import files
from cir_infer.gallery.filters.filters import Where
from cir_infer.hits import Hit, Hits
from cir_infer.inputs.arguments import checked_seconds
from cir_infer.inputs.texts import Text
from cir_infer.processes.staying import Staying
from cir_infer.processes.turns import Claim, Token, Turn
from cir_infer.scoring.balance import Balance
from cir_infer.searcher import Queries
from cir_infer.searching.asked import Reference
from cir_infer.searching.exclusion import checked_ids
from cir_infer.searching.vectors import Metric
from cir_infer.shards.listing import FILE, read_listing
from cir_infer.shards.searcher import ShardedSearcher

if TYPE_CHECKING:
    from cir_infer.explaining.explanation import Explanation

__all__ = ["FollowingSearcher", "follow_folder"]

T = TypeVar("T")


class _Open(NamedTuple):
    """The version that is asked, what says which it is, and the one before it."""

    current: ShardedSearcher
    version: Hashable
    before: ShardedSearcher | None = None


class FollowingSearcher(Staying, Queries):
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

    # What it follows is known to this process.
    stays = ("a searcher that follows", "make another where it is wanted")

    def __init__(
        self, version: Callable[[], Hashable], opened: Callable[[], ShardedSearcher], every: float = 1.0
    ) -> None:
        self._version, self._opened = version, opened
        self._every = checked_seconds("every", every)
        # Not locks: an interrupt, or a fork while another thread holds one, would leave them locked.
        self._changing, self._following = Turn(), Turn()
        known = version()
        self._held: _Open | None = _Open(opened(), known)
        self._asking: list[tuple[Claim, ShardedSearcher]] = []
        self._ended: set[ShardedSearcher] = set()
        self._looked = time.monotonic()
        self.changes = 0
        self.behind: CirError | None = None

    def close(self) -> None:
        """Close what is open."""
        for searcher in self._changing.take(self._let_go):
            searcher.close()

    def _let_go(self) -> set[ShardedSearcher]:
        held, self._held = self._held, None
        ended = {*self._ended, *(() if held is None else (held.current, held.before))}
        self._ended.clear()
        return {searcher for searcher in ended if searcher is not None}

    def __enter__(self) -> FollowingSearcher:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.current())

    def __repr__(self) -> str:
        held = self._held
        return f"<FollowingSearcher of {None if held is None else held.current!r}>"

    def current(self, now: bool = False) -> ShardedSearcher:
        """The searcher over the newest version.

        Args:
            now: look for a new one whenever the last look was.

        Raises:
            UsageError: this is closed.
        """
        self._open()
        if now:
            self._following.take(self._look)
        elif time.monotonic() - self._looked >= self._every:
            # While one opens the newest, others ask the one that is open.
            self._following.take_if_free(self._look)
        return self._open().current

    def _open(self) -> _Open:
        held = self._held
        if held is None:
            raise UsageError("this searcher is closed; make another")
        return held

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            self._follow()
            self.behind = None
        except CirError as error:  # it is being changed, say; the one that is open goes on
            # Without what led to it: frames of tracebacks would keep a model that was opened in vain.
            error.__cause__ = error.__context__ = None
            self.behind = error.with_traceback(None)

    def _follow(self) -> None:
        version = self._version()
        if version == self._open().version:
            return
        fresh = self._opened()
        if self._changing.take(self._change, fresh, version):
            self._close_idle()
        else:
            fresh.close()

    def _change(self, fresh: ShardedSearcher, version: Hashable) -> bool:
        """Have another version asked; False where this was closed meanwhile."""
        held = self._held
        if held is None:
            return False
        self._held = _Open(fresh, version, held.current)
        self.changes += 1
        if held.before is not None:
            self._ended.add(held.before)
        return True

    def _close_idle(self) -> None:
        for searcher in self._changing.take(self._idle):
            searcher.close()

    def _idle(self) -> list[ShardedSearcher]:
        """Versions whose time is over and that nobody asks any more; they are told once."""
        for one in list(self._asking):
            if not one[0].held:
                self._forget(one)
        asked = {searcher for _, searcher in list(self._asking)}
        idle = [searcher for searcher in self._ended if searcher not in asked]
        self._ended.difference_update(idle)
        return idle

    def _forget(self, one: tuple[Claim, ShardedSearcher]) -> None:
        with suppress(ValueError):  # another thread was first
            self._asking.remove(one)

    def _asked(self, ask: Callable[[ShardedSearcher], T]) -> T:
        searcher = self.current()
        try:
            return self._kept_open(searcher, ask)
        except (ShardError, GalleryError, UsageError):
            other = self.current(now=True)
            if other is searcher:
                raise
            return self._kept_open(other, ask)

    def _kept_open(self, searcher: ShardedSearcher, ask: Callable[[ShardedSearcher], T]) -> T:
        """Ask one that stays open meanwhile."""
        token = Token()
        one = (Claim(token), searcher)
        self._asking.append(one)
        try:
            return ask(searcher)
        finally:
            one[0].over = True
            self._forget(one)
            if self._ended:
                self._close_idle()

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
        left_out = checked_ids(exclude)  # which is read once, and may be asked twice
        return self._asked(lambda one: one.query(image, text, k, where, left_out, exclude_reference, balance))

    def query_batch(
        self,
        images: Any,
        texts: Any,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """See `Queries.query_batch`; all over the version that is the newest when this is called."""
        left_out = checked_ids(exclude)
        return self._asked(lambda one: one.query_batch(images, texts, k, where, left_out, *more, **options))

    def explain(self, *asked: Any, **options: Any) -> Explanation:
        """See `Queries.explain`."""
        return self._asked(lambda one: one.explain(*asked, **options))

    def search_vectors(
        self,
        vectors: Any,
        k: int = 10,
        where: Where | None = None,
        exclude: Iterable[str] | None = None,
        metric: Metric = "cosine",
    ) -> list[Hits]:
        """See `ShardedSearcher.search_vectors`."""
        left_out = checked_ids(exclude)
        return self._asked(lambda one: one.search_vectors(vectors, k, where, left_out, metric))

    def item(self, id: str) -> Hit:
        """See `ShardedSearcher.item`."""
        return self._asked(lambda one: one.item(id))

    def warm_up(self, k: int = 10) -> None:
        """See `ShardedSearcher.warm_up`."""
        self._asked(lambda one: one.warm_up(k))


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
