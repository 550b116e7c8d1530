"""A few hundred of the requests of `hostile`; `python -m tests.serving.hostile` sends 100,000."""

from __future__ import annotations

import pytest

from tests.serving.hostile import attack
from tests.serving.support import Running


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_requests_get_4xx_and_the_service_lives(served: Running, seed: int) -> None:
    told = attack(served.client.port, 300, seed)
    assert sum(told.values()) >= 300
    assert sum(count for status, count in told.items() if 400 <= status < 500) > 100
    assert served.client("POST", "/v1/search", {"item": "sku-1", "text": "is red"}).status == 200
    assert served.service._in_work == 0
    assert served.service.budget._left == 256 << 20
