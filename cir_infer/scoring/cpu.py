"""The native scorer on the CPU: exact top-k at the price of reading the gallery once.

The instruction set is chosen when a scorer is made: AVX-512 with AMX, AVX-512 and AVX2 with or without
VNNI, NEON with or without dot products, or portable C++. See kernels/score/README.md for how it works and how
fast it is.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cir_infer.errors import DeviceError, UsageError, shown
from cir_infer.extras import importing
from cir_infer.inputs.arguments import checked_number
from cir_infer.processes.cpus import available_cpus
from cir_infer.processes.staying import Staying
from cir_infer.scoring.contract import SCORER_STAYS, QueryTerms, Rows, TopK
from cir_infer.scoring.validation import check_query, check_threads, within_memory

__all__ = ["BatchStatistics", "CpuScorer", "Int8Scorer", "Int8Statistics", "instruction_sets", "kernels_hash"]


def _native() -> Any:
    """The compiled module."""
    with importing("the compiled scoring kernels", _not_built):
        from cir_infer.scoring import _kernels
    return _kernels


def _not_built(reason: str) -> DeviceError:
    return DeviceError(
        f"the compiled scoring kernels cannot be loaded ({reason}); this looks like a source checkout "
        "that was not built: run `pip install -e .` in it (needs a C++17 compiler), or name the slow "
        'scorer "reference" explicitly'
    )


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine can run, best first.

    Raises:
        DeviceError: the native module is not built.
    """
    return tuple(_native().instruction_sets())


def kernels_hash() -> str:
    """SHA-256 over the sources that the native module was built from, for results of measurements.

    Raises:
        DeviceError: the native module is not built.
    """
    return str(_native().source_hash)


class _Settings(NamedTuple):
    threads: int
    instruction_set: str


def _settings(threads: int | None, instruction_set: str | None) -> _Settings:
    check_threads(threads)
    known = instruction_sets()
    if instruction_set is not None and instruction_set not in known:
        raise DeviceError(
            f"this machine cannot run the instruction set {shown(instruction_set)}; it has {', '.join(known)}"
        )
    return _Settings(int(threads or available_cpus()), instruction_set or known[0])


def _view(rows: Rows) -> Any:
    return _native().Gallery(list(rows.blocks), list(rows.scales or ()))


def _arrays(terms: QueryTerms) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    weights = terms.weights
    return np.ascontiguousarray(terms.numerators), None if weights is None else np.ascontiguousarray(weights)


Products: TypeAlias = Literal["fastest", "float32", "int8"]


class BatchStatistics(NamedTuple):
    """What a `CpuScorer` did for batches that products of bytes may serve.

    Attributes:
        multiplied: pairs of a row and a query that were scored by products in float32.
        bounded: pairs that were bounded by products of bytes.
        listed: of these, scored after all; `listed / queries` is the length of a query's list.
        again: queries that were answered a second time, since a sample of the rows had promised too much.
    """

    multiplied: int
    bounded: int
    listed: int
    again: int


class CpuScorer(Staying):
    """Exact top-k over rows as they are stored, in one pass over them for each block of queries.

    The pass finds, in float32, every row that rounding leaves a chance to be among the best; those are
    scored as the definition says. Memory beyond the rows and the answer does not grow with the gallery.
    Threads may share a scorer and processes that were forked may use it; no state changes. A call in the
    main thread ends within a moment of a KeyboardInterrupt.

    Args:
        rows: the gallery, kept and not copied.
        threads: how many threads a call may use; None for every core that the process may use.
        instruction_set: one of `instruction_sets()`; None for the best.
        products: of batches of queries, where the instruction set multiplies bytes. "fastest" bounds scores
            by int8 products while these leave few rows to score, and multiplies in float32 where they do
            not; "float32" and "int8" do one of the two always. The answers are the same.

    Raises:
        DeviceError: the native module is not built, or the machine lacks the instruction set.
        UsageError: threads < 1, or other products.
    """

    stays = SCORER_STAYS

    def __init__(
        self,
        rows: Rows,
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
        products: Products = "fastest",
    ) -> None:
        if products not in ("fastest", "float32", "int8"):
            raise UsageError(f'products are {shown(products)}; expected "fastest", "float32" or "int8"')
        self._settings = _settings(threads, instruction_set)
        self._products = products
        self._rows = rows
        self._gallery = _view(rows)

    @property
    def name(self) -> str:
        """E.g. "cpu (avx512vnni)"."""
        return f"cpu ({self._settings.instruction_set})"

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """See `Scorer.topk`."""
        check_query(terms, k, allow, self._rows.count, self._rows.dimension)
        mask = None if allow is None else np.ascontiguousarray(allow)
        wanted = min(int(k), max(self._rows.count, 1))
        with within_memory(terms, k):
            answer = _native().topk(
                self._gallery, *_arrays(terms), wanted, mask, *self._settings, self._products
            )
            return TopK(*answer).widened(int(k))

    @property
    def statistics(self) -> BatchStatistics:
        """Counts over all batches so far."""
        return BatchStatistics(*self._gallery.statistics())

    def read_all(self) -> int:
        """Sum every byte of the rows, as 32-bit words, with the scorer's threads: the read roofline."""
        return int(_native().read_all(self._gallery, *self._settings))


class Int8Statistics(NamedTuple):
    """What an `Int8Scorer` has done so far.

    Attributes:
        queries: answered.
        extended: of these, how many needed more than the first list.
        exhaustive: how many were answered by a scan of the stored rows: in small galleries, where terms have
            no bound, and batches over int8 rows, which `CpuScorer` bounds faster.
        rescored: stored rows that were scored exactly.
    """

    queries: int
    extended: int
    exhaustive: int
    rescored: int


class Int8Scorer(Staying):
    """Exact top-k that reads an int8 copy of the rows and a short list of the rows themselves.

    The scan computes an upper bound of every row's score, with a proof in place of an estimate (see
    kernels/score/integer_terms.h); rows of the highest bounds are scored as stored. Where that does not
    prove that no other row can belong to the answer, a second scan scores every row whose bound reaches it.
    A batch of some twelve queries and more is bounded as `CpuScorer` does, from the bytes of the copy.

    The copy takes dimension + 4 bytes a row, and building it one pass over the rows (about two
    microseconds a row of 512 values). int8 rows are their own copy. Threads may share a scorer.

    Args:
        rows: the gallery, kept.
        threads: how many threads a call may use; None for every core that the process may use.
        instruction_set: one of `instruction_sets()`; None for the best.
        first_list: rows that are re-scored first; None chooses by k, and scans a small gallery as stored.

    Raises:
        DeviceError: the native module is not built, or the machine lacks the instruction set.
        UsageError: threads < 1 or first_list < 1.
    """

    stays = SCORER_STAYS

    def __init__(
        self,
        rows: Rows,
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
        first_list: int | None = None,
    ) -> None:
        if first_list is not None:
            first_list = checked_number("first_list", first_list, instead=", or None to choose by k")
        self._settings = _settings(threads, instruction_set)
        self._first_list = min(int(first_list or 0), rows.count)
        self._rows = rows
        self._index = _native().Int8Index(_view(rows), *self._settings)

    @property
    def name(self) -> str:
        """E.g. "cpu exact from int8 (avx512vnni)"."""
        return f"cpu exact from int8 ({self._settings.instruction_set})"

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        """See `Scorer.topk`."""
        check_query(terms, k, allow, self._rows.count, self._rows.dimension)
        mask = None if allow is None else np.ascontiguousarray(allow)
        wanted = min(int(k), max(self._rows.count, 1))
        with within_memory(terms, k):
            answer = self._index.topk(*_arrays(terms), wanted, mask, *self._settings, self._first_list)
            return TopK(*answer).widened(int(k))

    @property
    def statistics(self) -> Int8Statistics:
        """Counts over all calls so far."""
        return Int8Statistics(*self._index.statistics())

    @property
    def copy_bytes(self) -> int:
        """Memory of the int8 copy; 0 where the rows are int8 themselves."""
        return int(self._index.bytes())
