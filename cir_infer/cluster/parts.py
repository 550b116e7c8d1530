"""Which part of a source is a shard's, so that each shard is indexed as a gallery by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cir_infer.indexing.items import Broken, Item, Survey, Territory
from cir_infer.indexing.report import Report
from cir_infer.indexing.run import nothing_found
from cir_infer.indexing.source import Source
from cir_infer.shards.layout import shard_of

__all__ = ["Part", "merged_report"]


class Part:
    """The items of a source whose ids lie in one shard.

    Args:
        source: the whole.
        number: of the shard.
        count: how many shards there are.
    """

    def __init__(self, source: Source, number: int, count: int) -> None:
        self._source, self._number, self._count = source, number, count
        self._met = False

    @property
    def name(self) -> str:
        """That of the source."""
        return self._source.name

    @property
    def survey(self) -> Survey:
        """That of the source; what is left out is counted by the first shard alone."""
        whole = self._source.survey
        return whole if self._number == 0 else Survey(unseen=whole.unseen)

    @property
    def territory(self) -> Territory | None:
        """That of the source: a shard's gallery holds its own items only."""
        return self._source.territory

    def count(self) -> int | None:
        """Not known without reading."""
        return None

    def items(self) -> Iterator[Item | Broken]:
        """The shard's items, and what is broken and has such an id."""
        for entry in self._source.items():
            self._met = True
            if shard_of(entry.id, self._count) == self._number:
                yield entry

    def without_emptiness(self, report: Report) -> None:
        """Take back that nothing was found here, where the source has items of other shards."""
        if self._met:
            said = nothing_found(self)
            report.broken = [one for one in report.broken if one.reason != said]


def merged_report(reports: Sequence[Report]) -> Report:
    """What the runs of all shards did together; what several say of one source is said once."""
    whole = Report()
    for report in reports:
        whole.count(report)
        whole.broken += report.broken
        whole.given_up += report.given_up
        whole.refused += report.refused
        whole.left_out.update(report.left_out)
    # Shards word it differently that a source is empty.
    whole.broken = list({(one.id, one.source): one for one in reversed(whole.broken)}.values())[::-1]
    return whole
