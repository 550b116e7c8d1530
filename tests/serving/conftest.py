"""One service for the tests that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from tests.serving.browser import Page, browser
from tests.serving.support import Client, Running, make_gallery, running


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gallery(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def served(bundle: Path) -> Iterator[Running]:
    with running(bundle) as found:
        yield found


@pytest.fixture
def client(served: Running) -> Client:
    return served.client


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A bundle and gallery that a test may change."""
    return make_gallery(tmp_path)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture
def page(chromium: Any, served: Running) -> Iterator[Page]:
    with Page(chromium, served.client.port) as opened:
        opened.page.wait_for_selector(".card")
        yield opened
        assert opened.errors == []
        assert all(url.startswith((opened.home, "blob:")) for url in opened.asked)  # nothing from elsewhere
