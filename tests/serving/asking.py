"""Requests that are on their way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tests.serving.support import Client

QUERY = {"item": "sku-1", "text": "is red", "k": 3}


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Asking:
    """Requests that are on their way."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self._threads: list[threading.Thread] = []

    def ask(self, client: Client, **query: Any) -> None:
        thread = threading.Thread(
            target=lambda: self.answers.append(client("POST", "/v1/search", QUERY | query))
        )
        thread.start()
        self._threads.append(thread)

    def wait(self) -> list[int]:
        for thread in self._threads:
            thread.join(120)
        return sorted(answer.status for answer in self.answers)
