"""A real browser: the system's Chromium, driven by Playwright, where both are there (`make browser`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def browser() -> Iterator[Any]:
    """The browser; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, see `make browser`")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium, see `make browser`")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()


class Page:
    """A page that tells of every error."""

    def __init__(self, chromium: Any, port: int, path: str = "/", width: int = 1200, **more: Any) -> None:
        self.errors: list[str] = []
        self.asked: list[str] = []
        context = chromium.new_context(
            viewport={"width": width, "height": 800}, reduced_motion="reduce", **more
        )
        self.home = f"http://127.0.0.1:{port}"
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("console", lambda told: told.type == "error" and self.errors.append(told.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.home + path)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.context.close()

    def shows(self, selector: str, text: str) -> None:
        self.page.wait_for_function(
            "([s, t]) => document.querySelector(s)?.textContent.includes(t)", arg=[selector, text]
        )

    def pick(self, item: str) -> None:
        self.page.locator(f'.pick[aria-label*="{item}."], .pick[aria-label*="{item},"]').first.click()

    def find(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.keyboard.press("Enter")
        self.shows("#results-title", text)

    def ids(self) -> list[str]:
        found: list[str] = self.page.eval_on_selector_all(
            ".card .facts .meta", "all => all.map(one => one.title)"
        )
        return found
