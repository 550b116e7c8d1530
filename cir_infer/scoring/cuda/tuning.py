"""Where the tensor-core kernel takes over from the exact one, by GPU architecture.

`make gpu-check` measures both kernels on either side and prints the entry for its GPU; architectures
without an entry use `UNMEASURED`, which follows from counting: the exact kernel spends about nine float32
operations an element and query, so a handful of queries outweighs reading the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURED", "UNMEASURED", "Tuning", "tuning_for"]


@dataclass(frozen=True)
class Tuning:
    """When a batch goes through the tensor cores, and how its rows are staged.

    Attributes:
        queries: from this many queries on.
        rows: from this many rows on; below, launches outweigh arithmetic.
        first_rows: rows that are scored exactly at first, in all queries of a batch together, to know what a
            row must reach; each query takes at least `least_first_rows` and twice k.
        least_first_rows: see `first_rows`.
        stage: microseconds that a shortlist and the exact pass over its lists take beside what they read.
        listed_row: nanoseconds that the exact score of a listed row takes in each query. Both decide by how
            much each shortlist reads more rows than the one before (`stage_growth`).
        list_capacity: candidates that a query may list between two exact passes, at least.
        most_listed: candidates of all queries together; what it leaves a query beyond `list_capacity`, up
            to 16,384, lets small batches do with fewer passes.
        source: what was measured, or that nothing was.
    """

    queries: int
    rows: int
    first_rows: int = 32_768
    least_first_rows: int = 256
    stage: float = 15.0
    listed_row: float = 0.3
    list_capacity: int = 4096
    most_listed: int = 1 << 24
    source: str = "unmeasured"


UNMEASURED = Tuning(queries=4, rows=32_768)
MEASURED: dict[int, Tuning] = {}


def tuning_for(architecture: int) -> Tuning:
    """The measured tuning of an architecture (compute capability times ten), or the default."""
    return MEASURED.get(architecture, UNMEASURED)
