"""What a searcher over shards is given, opened and compared: shards of one model, each once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cir_infer.engine import Engine
from cir_infer.errors import GalleryError, MissingShard, ShardError, UsageError, shown
from cir_infer.gallery import Gallery
from cir_infer.inputs.arguments import plain_path
from cir_infer.processes.cpus import available_cpus
from cir_infer.shards.fanout import Fanout, Group
from cir_infer.shards.http import HttpShard
from cir_infer.shards.layout import ShardedGallery
from cir_infer.shards.shard import About, LocalShard, Shard

__all__ = ["Opening", "compare"]

_PATIENCE = 30.0
"""Seconds for all replicas to say what they are."""


class Opening:
    """Opens shards, and notes what has to be closed.

    Args:
        scorer: see `cir_infer.scoring.make_scorer`.
        threads: CPU threads of a call of a gallery in this process; None to share the processors out.
        owned: what was opened is added.
    """

    def __init__(self, scorer: str, threads: int | None, owned: list[Any]) -> None:
        self._scorer, self._threads, self._owned = scorer, threads, owned
        self._galleries: list[Gallery] = []

    def groups(self, shards: Any, replicas: int) -> list[Group]:
        """The shards, each with its replicas.

        Args:
            shards: see `ShardedSearcher`.
            replicas: of each gallery that is named once.

        Raises:
            GalleryError: see `ShardedSearcher`.
            UsageError: something else.
        """
        parts = self._parts(shards)
        if self._threads is None:
            self._threads = max(1, available_cpus() // len(parts))
        groups = []
        for part in parts:
            several = part if isinstance(part, (list, tuple)) else [part] * replicas
            if not several:
                raise UsageError("a shard is an empty list; expected its replicas")
            groups.append(Group([self._shard(one) for one in several]))
        return groups

    def check(self, common: About, engine: Engine) -> None:
        """See that the shards are of an engine's bundle, those of this process from now on.

        Args:
            common: what the shards have in common.
            engine: it.

        Raises:
            GalleryError: they are of another.
        """
        for gallery in self._galleries:
            gallery.check_engine(engine)
        shape = (engine.dimension, engine.tokens_per_item)
        if common.fingerprint not in (None, engine.fingerprint) or common[3:5] != shape:
            raise GalleryError(
                f"{common.place}: its rows are {_rows(common)}, the bundle {engine.path} makes {shape[1]} x "
                f"{shape[0]} of {shown(engine.fingerprint, 80)}; use the bundle that encoded them"
            )

    def _parts(self, shards: Any) -> list[Any]:
        if isinstance(shards, (str, os.PathLike)):
            shards = ShardedGallery(Path(plain_path(shards)), read_only=True)
            self._owned.append(shards)
        if isinstance(shards, ShardedGallery):
            return list(shards.shards)
        if not isinstance(shards, Sequence) or not shards:
            raise UsageError(
                f"shards is {shown(shards)}; expected the folder of a sharded gallery, or a list of galleries"
            )
        return list(shards)

    def _shard(self, shard: Any) -> Shard:
        if isinstance(shard, str) and shard.startswith(("http://", "https://")):
            shard = HttpShard(shard)
            self._owned.append(shard)
        if isinstance(shard, (str, os.PathLike)):
            shard = Gallery.open(Path(plain_path(shard)), read_only=True)
            self._owned.append(shard)
        if isinstance(shard, Gallery):
            self._galleries.append(shard)
            shard = LocalShard(shard, self._scorer, self._threads)
            self._owned.append(shard)
        if not all(hasattr(shard, name) for name in ("place", "about", "search", "held")):
            raise UsageError(f"a shard is {shown(shard)}; expected a Gallery, its path, a URL, or a Shard")
        found: Shard = shard
        return found


def compare(groups: Sequence[Group], deadline: float | None) -> About:
    """Ask every replica what it is, and see that they belong together.

    Of each shard one replica must answer within the deadline; those that do not now are not compared.

    Returns:
        What they have in common, of the first.

    Raises:
        GalleryError: they differ, or one is there twice.
        ShardError: no replica of a shard can be reached.
    """
    known = _asked(groups, deadline)
    first = known[0][0]
    for found in known:
        for about in found:
            _check_alike(about, first)
        _check_replicas(found)
    _check_once(known)
    for group, found in zip(groups, known, strict=True):
        group.size = found[0].size
    return first


def _asked(groups: Sequence[Group], deadline: float | None) -> list[list[About]]:
    """What the replicas of each shard say, at least one of each."""

    def ask(parts: Sequence[Group], limit: float | None, again: bool) -> list[About | MissingShard]:
        fanout = Fanout(parts, limit)
        try:
            return fanout.ask(lambda shard, left: shard.about(left), 0, again)
        finally:
            fanout.close()

    every = ask([Group([shard]) for group in groups for shard in group.shards], _PATIENCE, False)
    answers = iter(every)
    known = [
        [said for said in islice(answers, len(group.shards)) if isinstance(said, About)] for group in groups
    ]
    silent = [number for number, found in enumerate(known) if not found]
    if silent:
        later = ask([groups[number] for number in silent], deadline, True)
        for number, said in zip(silent, later, strict=True):
            if isinstance(said, MissingShard):
                raise ShardError(
                    f"shard {number} of {len(groups)} ({said.place}): {said.reason}; start it, or one of its "
                    "replicas",
                    missing=[said._replace(number=number)],
                )
            known[number].append(said)
    return known


def _rows(one: About) -> str:
    return f"{one.tokens_per_item} x {one.dimension} of {shown(one.fingerprint, 80)}"


def _check_alike(about: About, first: About) -> None:
    if about[2:5] != first[2:5]:
        raise GalleryError(
            f"{about.place}: its rows are {_rows(about)}, those of {first.place} are {_rows(first)}; shards "
            "have rows of one bundle"
        )


def _check_replicas(shard: Sequence[About]) -> None:
    """See that each replica has to do with one before it: is its backup, or is what it is a backup of."""
    names: set[str] = set()
    for about in shard:
        own = {about.identity} if about.strayed else _named(about)
        if names and not names & own:
            changed = ", for it was a backup and was changed since" if about.strayed else ""
            raise GalleryError(
                f"{about.place} is another gallery than {shard[0].place}{changed}; replicas of a shard are "
                "backups of one gallery (Gallery.backup), or the same one"
            )
        names |= own


def _check_once(shards: Sequence[Sequence[About]]) -> None:
    known: dict[str, About] = {}
    for shard in shards:
        names = {name: about for about in shard for name in _named(about) | about.written_by}
        for name, about in names.items():
            if name in known:
                raise GalleryError(
                    f"{about.place}: is the gallery {known[name].place} again, or a copy of it, so its items "
                    "would be answered twice; name each shard once, its replicas in a list of their own"
                )
        known |= names


def _named(about: About) -> set[str]:
    """The galleries that hold its items: itself, and what it is a backup of."""
    return {about.identity} if about.origin is None else {about.identity, about.origin}
