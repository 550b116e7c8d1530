"""The routes of a shard: composed queries in, scores and items out. There with `--shard` alone."""

from __future__ import annotations

from typing import Any

from cir_infer.errors import ScoringError, UsageError, shown
from cir_infer.serving.exchanges import body_of, finished, json_answer
from cir_infer.serving.problems import Problem
from cir_infer.serving.schemas import ShardItemsRequest, check_excluded, check_filter, check_values, parsed
from cir_infer.serving.service import Service
from cir_infer.shards.shard import LocalShard
from cir_infer.shards.wire import (
    MOST_HELD,
    MOST_HITS,
    Asked,
    read_question,
    told_about,
    told_found,
    told_held,
)

__all__ = ["ShardRoutes"]

_TIMES = 16
"""So many times the hits of other routes: a search that leaves out the reference, and copies of it, asks for
more than its k until it has so many besides."""


class ShardRoutes:
    """Answers /v1/shard and what is below it.

    Args:
        service: that computes.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def about(self, request: Any) -> Any:
        """What the shard is: its gallery's identity, fingerprint, shape and size."""
        return json_answer(await self._given(request, lambda shard: told_about(shard.about())))

    async def search(self, request: Any) -> Any:
        """The best items of queries that are composed already."""
        _, body = await body_of(request, self._service, "application/json")
        check_values(body)
        asked = read_question(body)
        most = _TIMES * self._service.settings.max_k
        if asked.k > most:
            raise Problem("invalid-argument", f"k is {shown(asked.k)}; expected 1 to {most}")
        check_excluded(asked.exclude)
        check_filter(asked.where)
        return json_answer(await self._given(request, lambda shard: _search(shard, asked)))

    async def items(self, request: Any) -> Any:
        """Items with their rows, null for each that the shard does not hold."""
        _, body = await body_of(request, self._service, "application/json")
        wanted: ShardItemsRequest = parsed(ShardItemsRequest, body)
        if len(wanted.ids) > MOST_HELD:
            raise Problem("invalid-argument", f"{len(wanted.ids):,} ids; expected {MOST_HELD} at most")
        return json_answer(await self._given(request, lambda shard: told_held(shard.held(wanted.ids))))

    async def _given(self, request: Any, work: Any) -> Any:
        seconds = self._service.settings.timeout
        return await finished(request, self._service.of_shard(work), seconds)


def _search(shard: LocalShard, asked: Asked) -> dict[str, Any]:
    hits = asked.terms.queries * min(asked.k, shard.size)
    if hits > MOST_HITS:
        raise Problem(
            "too-large", f"{hits:,} hits were asked for; ask fewer queries at a time, or fewer hits"
        )
    try:
        return told_found(shard.search(*asked))
    except ScoringError as error:  # terms of another width than the rows
        raise UsageError(str(error)) from error
