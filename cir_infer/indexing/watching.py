"""Indexing again and again, and saying each thing once."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress

from cir_infer.gallery.disk.locks import GalleryBusyError
from cir_infer.indexing.items import Broken
from cir_infer.indexing.report import Report

__all__ = ["News", "watch"]


class News:
    """Tells what is new in a report from what was told already.

    Attributes:
        known_broken: (id, stamp) of items that are not worth another try until they change.
        broken: all that is broken now.
    """

    def __init__(self) -> None:
        self.known_broken: set[tuple[str, str]] = set()
        self.broken: list[Broken] = []
        self._told: set[object] = set()
        self._left_out: dict[str, int] = {}

    def take(self, report: Report) -> bool:
        """Leave in a report only what was not told before; returns whether there is anything to tell."""
        # What was broken and was passed over, unchanged, is broken still.
        given_up = {(broken.id, broken.stamp): broken for broken in self.broken}
        passed_over = [given_up[entry] for entry in report.passed_over if entry in given_up]
        mended = len(self.broken)
        self.broken = [*report.broken, *passed_over]
        self.known_broken = {*report.given_up, *report.passed_over}
        now: set[object] = {*self.broken, *((refused.source, refused.gone) for refused in report.refused)}
        report.broken = [broken for broken in report.broken if broken not in self._told]
        report.refused = [
            refused for refused in report.refused if (refused.source, refused.gone) not in self._told
        ]
        mended -= len(self.broken)
        self._told = now
        left_out = dict(report.left_out)
        news = bool(report.changed or not report.ok or left_out != self._left_out or mended)
        self._left_out = left_out
        return news


def watch(
    run: Callable[[Container[tuple[str, str]], bool], Report],
    tell: Callable[[Report, Sequence[Broken]], None],
    seconds: float,
) -> None:
    """Index, wait and index again, until interrupted.

    Args:
        run: one run; takes what is known to be broken, and whether it is the first.
        tell: says what a run did; takes its report without what was told before, and all that is broken now.
        seconds: to wait between two runs.

    Raises:
        GalleryBusyError: somebody else was writing when this began.
    """
    news = News()
    first = True
    while True:
        started = time.monotonic()
        busy = 0.0
        with suppress(*(() if first else (GalleryBusyError,))):
            report = run(news.known_broken, first)
            if news.take(report) or first:
                tell(report, news.broken)
            busy, first = time.monotonic() - started - report.encoding_seconds, False
        # A scan of a huge folder takes its time; it must not become the main load.
        time.sleep(max(seconds, 4 * busy))
