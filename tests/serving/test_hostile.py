"""A few hundred of the requests of `hostile`; `python -m tests.serving.hostile` sends 100,000."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.serving.hostile import attack
from tests.serving.support import running, together


def test_hostile_requests_get_4xx_and_the_service_lives(bundle: Path) -> None:
    with running(bundle, read_timeout=1) as found:
        # Many at once: those that end nowhere take the second of their time-out.
        parts = together([lambda seed=seed: attack(found.client.port, 4, seed) for seed in range(75)])
        told = sum(parts, Counter())
        assert sum(told.values()) >= 300
        assert {400, 404, 415, 421, 422} <= set(told)
        assert found.client("POST", "/v1/search", {"item": "sku-1", "text": "is red"}).status == 200
        assert found.service._in_work == 0
        assert found.service.budget._left == 256 << 20
