"""What a long command says meanwhile: a bar on a terminal, elsewhere a line now and then.

Lines go the way of log lines, which a command shows (`say_on_stderr`), and in a program of somebody else's
wherever that sends the logger's.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cir_infer.console.printing import printable

__all__ = ["progress_bar", "progress_of", "tell"]

_log = logging.getLogger(__name__)
_now = time.monotonic

_FIRST, _LEAST_SHARE, _MOST = 10.0, 1 / 8, 600.0
"""Seconds of silence before a line: at least so many, a share of what has passed, at most so many."""

T = TypeVar("T")


class _Pace:
    """When the next line is due, of all bars together: an hour has some 40, a day 180."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._last = 0.0

    def said(self) -> None:
        """A line has just been said, or the first bar begins."""
        self._last = _now()
        if self._begun is None:
            self._begun = self._last

    def begin(self) -> None:
        """A bar begins."""
        if self._begun is None:
            self.said()

    def is_due(self) -> bool:
        """Whether it has been quiet for long enough."""
        now = _now()
        passed = now - (now if self._begun is None else self._begun)
        return now - self._last >= min(max(_FIRST, _LEAST_SHARE * passed), _MOST)


_pace = _Pace()


def tell(what: str) -> None:
    """Say on stderr what begins now: a line on a terminal, elsewhere and with --verbose a log line."""
    if sys.stderr.isatty() and not logging.getLogger("cir_infer").isEnabledFor(logging.INFO):
        print(printable(what), file=sys.stderr, flush=True)
    else:
        _pace.said()
        _log.info("%s", what)


@contextmanager
def progress_of(
    total: int | Callable[[], int | None] | None, description: str, unit: str, enabled: bool = True
) -> Iterator[Callable[..., object]]:
    """How much is done, with rate and remaining time: a bar on a terminal, elsewhere a line now and then.

    Args:
        total: how many units there are, where known, or what counts them, which is asked where it is shown.
        description: the word before it.
        unit: what a unit is called, e.g. "image".
        enabled: False shows nothing.

    Yields:
        What is called with the number of units done since the last call, one where it is not said.
    """
    if not enabled or not (sys.stderr.isatty() or _log.isEnabledFor(logging.INFO)):
        yield lambda _=1: None
        return
    if sys.stderr.isatty():
        from tqdm import tqdm

        count = total() if callable(total) else total
        with tqdm(total=count, desc=description, unit=unit, leave=False) as bar:
            yield bar.update
        return
    begun, done = _now(), 0
    _pace.begin()

    def update(more: int = 1) -> None:
        nonlocal done, total
        done += more
        if _pace.is_due():
            from tqdm import tqdm

            if callable(total):
                total = total()
            passed = _now() - begun
            _log.info("%s", tqdm.format_meter(done, total, passed, 0, prefix=description, unit=unit))
            _pace.said()

    update(0)  # what begins in a long silence is said: its first unit may take minutes
    yield update


def progress_bar(
    items: Iterable[T],
    total: int | None = None,
    description: str = "",
    unit: str = "it",
    enabled: bool = True,
    step: int = 1,
) -> Iterator[T]:
    """Iterate over `items` and say how far it is, see `progress_of`.

    Args:
        items: what to iterate over.
        total: how many units there are, where known.
        description: the word before it.
        unit: what a unit is called, e.g. "image".
        enabled: False shows nothing.
        step: units an item stands for, e.g. the batch size.
    """
    done = 0
    with progress_of(total, description, unit, enabled) as update:
        for item in items:
            yield item
            more = step if total is None else min(step, total - done)
            done += more
            update(more)
