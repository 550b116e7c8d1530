"""More of one term, less of another: factors by the terms' names, on the numerators of a query.

    score(q, t) = sum_j f_j (n_j . t) / sqrt(w_j . t^2)

is the score of a query whose numerators are f_j n_j, so every scorer answers it, exactly and at the cost of
any other query. Weights stay as they are: a term does not see a factor of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from cir_infer.errors import UsageError, shown
from cir_infer.inputs.arguments import checked_real
from cir_infer.scoring.contract import QueryTerms

__all__ = ["MOST_FACTOR", "Balance", "balanced", "checked_balance"]

Balance: TypeAlias = Mapping[str, float]
"""A factor for each of some terms, by name; 1 for the others."""

MOST_FACTOR = 1e6
"""A factor is 0, or between a millionth and a million in size: float32 keeps all digits of the products."""


def checked_balance(balance: Any, names: tuple[str, ...]) -> dict[str, float]:
    """The factors as plain numbers, in the order of the terms; none for None.

    Args:
        balance: a mapping from terms' names to finite numbers, negative ones allowed; or None.
        names: the terms that there are.

    Raises:
        UsageError: no mapping, an unknown name, a factor out of range, or nothing left of the score.
    """
    if balance is None:
        return {}
    wrong = UsageError(
        f'balance is {shown(balance)}; expected factors by the names of terms, e.g. {{"{names[0]}": 1.5}}'
    )
    if not isinstance(balance, Mapping):
        raise wrong
    try:
        found = dict(balance)
    except Exception as error:  # what mappings of others raise
        raise wrong from error
    unknown = [name for name in found if not (isinstance(name, str) and name in names)]
    if unknown:
        raise UsageError(
            f"balance names a term {shown(unknown[0])}; this system's terms are {', '.join(names)}"
        )
    expected = f"0 or a number whose size is between {1 / MOST_FACTOR:g} and {MOST_FACTOR:g}"
    factors: dict[str, float] = {}
    for name in names:
        if name in found:
            factor = checked_real(f"balance of {name}", found[name], expected)
            if factor and not 1 / MOST_FACTOR <= abs(factor) <= MOST_FACTOR:
                raise UsageError(f"balance of {name} is {shown(found[name])}; expected {expected}")
            factors[name] = factor
    if factors and not any(factors.get(name, 1.0) for name in names):
        raise UsageError("balance takes every term out of the score; leave one of them in")
    return factors


def balanced(terms: QueryTerms, factors: Balance) -> QueryTerms:
    """The queries with each numerator times its factor; the very same ones where there are no factors."""
    if not factors:
        return terms
    scale = np.array([factors.get(name, 1.0) for name in terms.names], np.float32)
    return replace(terms, numerators=terms.numerators * scale[:, None])
