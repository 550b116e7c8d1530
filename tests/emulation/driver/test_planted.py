"""The driver finds every planted mistake in the host code, or its silence about ours would mean nothing."""

from __future__ import annotations

import pytest

from tests.emulation.driver.building import build_driver, run_program
from tests.emulation.driver.conftest import missing

if missing():
    pytest.skip(missing(), allow_module_level=True)

from tests.emulation.driver.planted import MISTAKES

ORDERS = ("late", "early", "0", "1")


def ends(mistake: str, order: str) -> tuple[int, str]:
    done = run_program("tests.emulation.driver.planted", mistake, driver=build_driver(), order=order)
    return done.returncode, done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_the_code_as_it_is_passes(order: str) -> None:
    assert ends("none", order) == (0, "")


@pytest.mark.parametrize("mistake", [mistake.__name__ for mistake in MISTAKES])
def test_a_planted_mistake_is_found(mistake: str) -> None:
    assert any(code != 0 for code, _ in (ends(mistake, order) for order in ORDERS))
