"""Filters of the page at /: what its controls show, and what a link says beyond them, in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from cir_infer import Engine, Gallery
from tests.serving.browser import Page
from tests.serving.support import Client, running


def linked(where: Any, **more: str) -> str:
    text = where if isinstance(where, str) else json.dumps(where)
    return f"/?{urlencode({'where': text, **more})}"


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ({"price": {">": 30}}, 0),
        ({"price": 7}, 0),
        ({"$or": [{"price": 3}, {"colour": "blue"}]}, 0),
        ({"colour": ["red", "blue"]}, 0),
        ({"colour": {"prefix": "re"}, "price": {"<=": 20}}, 1),
        ({"colour": "red"}, 1),
        ({"$not": {"colour": {"prefix": 'b": {"\\'}}}, 0),
    ],
)
def test_a_filter_that_no_control_shows_holds_and_is_told(
    chromium: Any, client: Client, where: Any, count: int
) -> None:
    """`count` of its fields stand in controls; the rest had no part in the search."""
    expected = client.search(item="sku-4", text="is red", k=24, where=where).json
    with Page(chromium, client.port, linked(where, item="sku-4", text="is red")) as page:
        page.shows("#results-title", "is red")
        assert page.ids() == [hit["id"] for hit in expected["hits"]]
        others = page.page.locator("#filter-others button")
        assert others.count() == len(where) - count and page.page.locator("#filters").is_visible()
        for button in others.all_inner_texts():
            assert json.dumps(where[button.partition(":")[0]]).replace(" ", "") in button.replace(" ", "")
        assert page.page.inner_text("#filter-count").strip() == f"({len(where)})"
        query = parse_qs(urlsplit(page.page.url).query)
        asked = json.loads(query["where"][0])
        assert {name: [one] if isinstance(one, str) else one for name, one in where.items()} == asked
        assert page.errors == []


def test_a_filter_of_a_link_is_narrowed_by_a_control_and_can_be_taken_away(
    chromium: Any, client: Client
) -> None:
    where = {"price": {">": 30}}
    with Page(chromium, client.port, linked(where, item="sku-4", text="is red")) as page:
        page.shows("#results-title", "is red")
        page.page.get_by_label("price, at most").fill("33")
        page.page.get_by_label("price, at most").press("Tab")
        page.page.wait_for_function("() => location.search.includes('33')")
        both = {"price": {"<=": 33}, "$and": [where]}
        found = client.search(item="sku-4", text="is red", k=24, where=both).json["hits"]
        assert page.ids() == [hit["id"] for hit in found] and len(found) == 3
        page.page.locator("#filter-others button").click()
        page.page.wait_for_function("() => !location.search.includes('and')")
        assert json.loads(parse_qs(urlsplit(page.page.url).query)["where"][0]) == {"price": {"<=": 33}}
        page.page.click("#filter-clear")
        page.page.wait_for_function("() => !location.search.includes('where')")
        assert page.page.locator("#filter-others-box").is_hidden() and page.errors == []


def test_a_link_without_words_lists_what_its_filter_leaves(chromium: Any, client: Client) -> None:
    with Page(chromium, client.port, linked({"price": {"<": 3}})) as page:
        page.shows("#timing", "3 items")
        assert page.page.locator(".card").count() == 3 and page.errors == []


@pytest.mark.parametrize(
    "where", ["{", "[1]", '{"price": 9007199254740993}', '{"price": 3, "price": {"<": 9}}']
)
def test_a_filter_that_cannot_be_read_is_told_and_nothing_asked_without_it(
    chromium: Any, client: Client, where: str
) -> None:
    with Page(chromium, client.port, linked(where, item="sku-4", text="is red")) as page:
        page.shows("#problem", "The filter of this link cannot be read")
        assert page.page.input_value("#text") == "is red"
        assert not any("v1/search" in url for url in page.asked) and page.errors == []


NAMES = ("__proto__", "constructor", "toString", "hasOwnProperty")


def test_fields_of_any_name_are_filters(chromium: Any, own: Path) -> None:
    """An object of JavaScript has these by itself, and one of them cannot be set."""
    path = own.with_suffix(".gallery")
    shutil.rmtree(path)
    pictures = [own.parent / f"picture{number:02}.png" for number in range(16)]
    metadata = [
        {name: ("a", "b")[number >> bit & 1] for bit, name in enumerate(NAMES)} for number in range(16)
    ]
    with Engine(own, device="cpu", threads=1) as engine, Gallery.create(path, engine) as gallery:
        gallery.add(pictures, ids=[f"item-{number}" for number in range(16)], metadata=metadata)
    with running(own) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        page.page.click("summary")
        for number, name in enumerate(NAMES[:3], 1):
            fields = page.page.locator("fieldset", has=page.page.locator("legend", has_text=name))
            fields.locator(".chip", has_text="a").click()
            page.shows("#timing", f"{16 >> number} item")
        page.page.click("#filter-clear")
        page.shows("#timing", "16 items")
        for name in NAMES:
            for shown, where in ((1, {name: ["a"]}), (0, {name: {"!=": "b"}})):
                page.page.goto(page.home + linked(where, item="item-7", text="is red"))
                page.shows("#results-title", "is red")
                expected = found.client.search(item="item-7", text="is red", k=24, where=where).json["hits"]
                assert page.ids() == [hit["id"] for hit in expected]
                assert page.page.locator(".chip input:checked").count() == shown
                assert page.page.locator("#filter-others button").count() == 1 - shown
        assert page.errors == []


@pytest.mark.parametrize("wrong", ["1e", "9007199254740993"])
def test_a_number_that_cannot_be_read_is_shown_where_it_stands(
    chromium: Any, client: Client, wrong: str
) -> None:
    """It held "Find" up behind closed filters, without a word; one of too many digits was another number."""
    with Page(chromium, client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.page.fill("#text", "is red")
        page.page.click("summary")
        box = page.page.get_by_label("price, at least")
        box.focus()
        page.page.keyboard.type(wrong)
        page.page.keyboard.press("Tab")
        assert not box.evaluate("box => box.validity.valid")
        page.page.click("summary")
        page.page.wait_for_function("() => !document.querySelector('#filters').open")
        page.page.locator("#text").press("Enter")
        page.page.wait_for_function("() => document.querySelector('#filters').open")
        assert "where" not in page.page.url and page.page.locator(".bars").count() == 0
        box.focus()
        page.page.keyboard.press("Control+A")
        page.page.keyboard.type("30")
        page.page.keyboard.press("Tab")
        page.find("is red")
        assert json.loads(parse_qs(urlsplit(page.page.url).query)["where"][0]) == {"price": {">=": 30}}
        assert page.errors == []
