"""The one progress bar: on a terminal only, so that logs and pipes stay clean."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

__all__ = ["progress_bar"]

T = TypeVar("T")


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
