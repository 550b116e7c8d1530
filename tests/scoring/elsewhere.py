"""The native scorer as a program of its own, kernels/score/case_runner.cpp, by an emulator or not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cir_infer.scoring.contract import QueryTerms, Rows, TopK
from cir_infer.scoring.validation import check_query
from tests.other_machine import CaseRunner

PRODUCTS = ("fastest", "float32", "int8")
ROW_TYPES = (np.float32, np.float16, np.int8)
WAYS = ("one", "closer", "two")
"""Of bounds from bytes: by products of one digit, those brought closer row by row, by products of two."""


class ElsewhereScorer:
    """Hands each case to the program and reads the answer back."""

    name = "elsewhere"

    def __init__(
        self, rows: Rows, runner: CaseRunner, first_list: int | None = None, products: str = "fastest"
    ) -> None:
        self._rows = rows
        self._runner = runner
        self._products = products
        self._first_list = first_list

    def topk(self, terms: QueryTerms, k: int, allow: npt.NDArray[np.uint8] | None = None) -> TopK:
        rows = self._rows
        check_query(terms, k, allow, rows.count, rows.dimension)
        q, j, _ = terms.numerators.shape
        case = _case(rows, terms, k, allow, first_list=self._first_list, products=self._products)
        sizes = [4 * q * k, 8 * q * k, 4 * q * k * j, 4 * q * k * j if rows.has_tokens else 0]
        answer = self._runner.ask(case, sum(sizes))
        scores, numbers, by_term, tokens = np.split(np.frombuffer(answer, np.uint8), np.cumsum(sizes[:3]))
        return TopK(
            scores.view(np.float32).reshape(q, k),
            numbers.view(np.int64).reshape(q, k),
            by_term.view(np.float32).reshape(q, k, j),
            tokens.view(np.int32).reshape(q, k, j) if rows.has_tokens else None,
        )


def upper_bounds(
    rows: Rows, terms: QueryTerms, runner: CaseRunner, way: str, shares: tuple[float, ...]
) -> npt.NDArray[np.float32]:
    """(Q, N)"""
    shape = (len(terms.numerators), rows.count)
    case = _case(rows, terms, 1, None, products="int8", bounds=1 + WAYS.index(way))
    answer = runner.ask(case + np.array(shares, np.float64).tobytes(), 4 * shape[0] * shape[1])
    return np.frombuffer(answer, np.float32).reshape(shape)


def _case(
    rows: Rows,
    terms: QueryTerms,
    k: int,
    allow: npt.NDArray[np.uint8] | None,
    *,
    first_list: int | None = None,
    products: str,
    bounds: int = 0,
) -> bytes:
    q, j, _ = terms.numerators.shape
    exact_from_int8, threads = first_list is not None, 2
    head = [ROW_TYPES.index(rows.dtype.type), rows.dimension, len(rows.blocks), q, j, k]
    head += [
        terms.weights is not None,
        allow is not None,
        exact_from_int8,
        threads,
        first_list or 0,
        rows.tokens_per_item if rows.has_tokens else 0,
        PRODUCTS.index(products),
        bounds,
    ]
    case = [np.array(head, np.int64)]
    for b, block in enumerate(rows.blocks):
        case += [np.array([len(block)], np.int64), block]
        if rows.scales is not None:
            case.append(rows.scales[b])
    case += [array for array in (terms.numerators, terms.weights, allow) if array is not None]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in case)
