"""What comes out of a graph, checked against what went in: one rule for everything that runs graphs."""

from __future__ import annotations

from collections.abc import Mapping

from cir_infer.errors import BundleError
from cir_infer.runtime.graph import Array

__all__ = ["one_for_each"]


def one_for_each(name: str, feeds: Mapping[str, Array], outputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs of a run, each of which answers one row for each input.

    Args:
        name: of the graph.
        feeds: what it was given, one row an item.
        outputs: what it gave.

    Raises:
        BundleError: an output has another number of rows; a graph mixes the items of a batch.
    """
    count = len(next(iter(feeds.values())))
    for output, value in outputs.items():
        if value.shape[:1] != (count,):
            raise BundleError(
                f"the {name} graph makes {output} of shape {value.shape} of {count} inputs; expected "
                "one for each, so export the model again"
            )
    return outputs
