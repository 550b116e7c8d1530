"""One query in one launch, where graphs and scorer share a GPU: what a `Searcher` needs of it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cir_infer.runtime.graph import Array
from cir_infer.scoring.contract import TopK

__all__ = ["Chains"]


class Chains(Protocol):
    """Answers single queries without coming back to the host between encoder, compose graph and scorer.

    Implementations may be called from several threads.
    """

    def topk(
        self,
        image: Array | None,
        reference: Array | None,
        text: Array | None,
        k: int,
        allow: npt.NDArray[np.uint8] | None,
    ) -> TopK:
        """The k best rows for one query.

        Args:
            image: one prepared image, without a batch axis, to encode; or None.
            reference: one reference embedding, e.g. a gallery row, in place of an image; or None.
            text: one text embedding, float32 (H,), or None for a system that reads no text.
            k: at least 1.
            allow: the row mask, see `Scorer.topk`.

        Raises:
            ScoringError: the graphs' result is not finite.
            DeviceError: the device failed.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """How queries are answered, as plain values."""
        ...
