"""Where the tensor-core kernel takes over from the exact one, by GPU architecture.

`make gpu-check` measures both kernels on either side and prints the entry for its GPU; architectures
without an entry use `UNMEASURED`, which follows from counting: the exact kernel spends about nine float32
operations an element and query, so a handful of queries outweighs reading the rows.

int8 rows are an exception on GPUs with much bandwidth for their arithmetic. The exact kernel turns each byte
into a float32, which takes three times the instructions of the tensor cores' way for a byte, and more time
than memory does. By the model of the machine (tools/cuda/gpu_model.py) even one query then gains up to an
eighth by going through them, once there are rows enough to pay for more launches: `PREDICTED`.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURED", "PREDICTED", "UNMEASURED", "Tuning", "tuning_for"]


@dataclass(frozen=True)
class Tuning:
    """When a batch goes through the tensor cores, and how its rows are staged.

    Attributes:
        queries: from this many queries on.
        rows: from this many rows on; below, launches outweigh arithmetic.
        int8_queries: `queries` for rows stored as int8, from `int8_rows` of them on; None: no other.
        int8_rows: see `int8_queries`.
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
    int8_queries: int | None = None
    int8_rows: int = 0
    first_rows: int = 32_768
    least_first_rows: int = 160
    stage: float = 10.0
    listed_row: float = 0.3
    list_capacity: int = 4096
    most_listed: int = 1 << 24
    source: str = "unmeasured"


UNMEASURED = Tuning(queries=4, rows=32_768)
PREDICTED = {
    87: Tuning(4, 32_768, int8_queries=1, int8_rows=1_000_000, source="predicted"),
}
MEASURED = {
    # The crossover by `make gpu-check`. `stage` by its profile of launches: an exact pass over lists of a few
    # hundred rows takes 46 to 70 us, most of them waits. `int8_rows` is predicted here too.
    90: Tuning(
        3,
        32_768,
        int8_queries=1,
        int8_rows=1_000_000,
        stage=45.0,
        source="NVIDIA H200, D = 512, k = 50, float16",
    ),
}


def tuning_for(architecture: int) -> Tuning:
    """The tuning of an architecture (compute capability times ten): measured, predicted, or the default."""
    return MEASURED.get(architecture) or PREDICTED.get(architecture, UNMEASURED)
