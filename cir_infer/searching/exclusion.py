"""The rows that may answer: a filter's mask without what was excluded."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cir_infer.errors import UsageError, shown
from cir_infer.gallery import Snapshot
from cir_infer.gallery.arguments import named_ids
from cir_infer.hits import Hit, Hits

__all__ = ["checked_ids", "without"]


def checked_ids(exclude: Any) -> list[str]:
    """Ids that must not be answered.

    Raises:
        UsageError: one text, or something that is no list of texts.
    """
    if exclude is None:
        return []
    if isinstance(exclude, (Hit, Hits)) or hasattr(exclude, "read"):
        raise UsageError(f"exclude is {shown(exclude)}; expected a list of ids, e.g. hits.ids")
    return named_ids("exclude", exclude)


def without(
    snapshot: Snapshot, allow: npt.NDArray[np.uint8] | None, ids: list[str]
) -> npt.NDArray[np.uint8] | None:
    """The mask `allow` with the rows of some ids cleared; ids that are not there are passed over."""
    rows = snapshot.rows_with(ids) if ids else np.empty(0, np.int64)
    if not rows.size:
        return allow
    if allow is None:
        allow = np.packbits(np.ones(snapshot.rows.count, np.bool_), bitorder="little")
    allow = allow.copy()
    np.bitwise_and.at(allow, rows // 8, ~(np.uint8(1) << (rows % 8).astype(np.uint8)))
    return allow
