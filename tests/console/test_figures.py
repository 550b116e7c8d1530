"""Numbers as people read them: in terminals, on sheets, in reports."""

from __future__ import annotations

import pytest

from cir_infer.console.figures import change, counted, decimals


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (0.0, "0", "0"),
        (-0.0, "0", "0"),
        (-2.3e-5, "-2.3e-05", "-2.3e-05"),
        (4e-4, "4.0e-04", "+4.0e-04"),
        (5.1e-4, "0.001", "+0.001"),
        (-0.25, "-0.250", "-0.250"),
        (1.0396, "1.040", "+1.040"),
        (float("inf"), "inf", "+inf"),
    ],
)
def test_what_is_not_zero_never_looks_like_it(value: float, plain: str, signed: str) -> None:
    assert (decimals(value, 3), decimals(value, 3, signed=True)) == (plain, signed)


def test_one_is_no_plural() -> None:
    assert [counted(number, "item") for number in (0, 1, 5000)] == ["0 items", "1 item", "5,000 items"]
    assert [counted(number, "query", "queries") for number in (1, 2)] == ["1 query", "2 queries"]


def test_a_change_that_is_rounding_has_no_sign_of_a_loss() -> None:
    assert [change(points) for points in (-7e-15, -0.0, 0.004, -0.125, 2)] == [
        *("+0.00", "+0.00", "+0.00", "-0.12", "+2.00")
    ]
