"""What a long command says meanwhile: on a terminal only, so that logs and pipes stay clean."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from cir_infer.console.printing import printable

__all__ = ["progress_bar", "tell"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


def tell(what: str) -> None:
    """Say on stderr what begins now: a line on a terminal, a log line with --verbose."""
    if sys.stderr.isatty() and not _log.isEnabledFor(logging.INFO):
        print(printable(what), file=sys.stderr, flush=True)
    else:
        _log.info("%s", what)


def progress_bar(
    items: Iterable[T],
    total: int | None = None,
    description: str = "",
    unit: str = "it",
    enabled: bool = True,
    step: int = 1,
) -> Iterator[T]:
    """Iterate over `items` behind a bar on stderr with rate and remaining time.

    Args:
        items: what to iterate over.
        total: how many units there are, where known.
        description: the word before the bar.
        unit: what a unit is called, e.g. "image".
        enabled: False, or a stderr that is not a terminal, shows nothing.
        step: units an item stands for, e.g. the batch size.
    """
    if not enabled or not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=description, unit=unit, unit_scale=False, leave=False) as bar:
        for item in items:
            yield item
            bar.update(step if total is None else min(step, total - bar.n))
