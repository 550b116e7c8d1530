"""The page's addresses: back and forward, reloading, links, and what somebody was about to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.serving.browser import Page
from tests.serving.support import COUNT, Client, Gated, Running, make_gallery, png, running


def ids(client: Client, item: str, text: str) -> list[str]:
    return [hit["id"] for hit in client.search(item=item, text=text, k=24).json["hits"]]


def shows(page: Page, text: str, expected: list[str]) -> None:
    page.shows("#results-title", text)
    assert page.ids()[:24] == expected
    assert page.page.title().startswith(text)


def test_back_leaves_a_link_as_it_was_come_to(chromium: Any, served: Running) -> None:
    """It was asked again and laid on top, each time: nobody came out."""
    with Page(chromium, served.client.port, "/openapi.json") as page:
        page.page.goto(f"{page.home}/?item=sku-4&text=is+red")
        page.shows("#results-title", "is red")
        page.page.go_back()
        page.page.wait_for_url("**/openapi.json")


def test_an_address_shows_its_own_search_after_a_reload(page: Page, client: Client) -> None:
    """The first search after a reload took the place of what was the first before it."""
    items = ["sku-4"]
    for text in ("is red", "longer", "is blue"):
        page.pick(items[-1])
        page.find(text)
        items.append(page.ids()[1])
    page.page.reload()
    page.shows("#results-title", "is blue")
    page.page.go_back()
    shows(page, "longer", ids(client, items[1], "longer"))
    page.page.go_back()
    shows(page, "is red", ids(client, items[0], "is red"))
    page.page.go_forward()
    shows(page, "longer", ids(client, items[1], "longer"))
    page.page.go_forward()
    shows(page, "is blue", ids(client, items[2], "is blue"))
    assert page.page.locator("#trail [aria-current=step]").inner_text() == "is blue"


def test_an_address_shows_its_own_search_when_another_way_was_taken(page: Page, client: Client) -> None:
    page.pick("sku-4")
    page.find("is red")
    second, third = page.ids()[1:3]
    page.pick(second)
    page.find("longer")
    page.page.locator("#trail button").first.click()
    page.shows("#results-title", "is red")
    page.pick(third)
    page.find("is blue")
    page.page.go_back()
    shows(page, "is red", ids(client, "sku-4", "is red"))
    page.page.go_back()
    shows(page, "longer", ids(client, second, "longer"))
    assert page.page.locator("#trail button").all_inner_texts() == ["is red", "longer"]
    assert f"item={second}&" in page.page.url


def test_back_at_the_beginning_nothing_is_left_of_a_search(page: Page) -> None:
    page.pick("sku-4")
    page.find("is purplish")
    page.page.wait_for_selector("#unknown", state="visible")
    page.page.go_back()
    page.shows("#results-title", "Start from one of these")
    assert page.page.title() == "Composed image retrieval"
    for gone in ("#unknown", "#picture", "#copy"):
        assert page.page.locator(gone).is_hidden()
    assert page.page.input_value("#text") == ""


@pytest.mark.parametrize("how", ["the link", "an address with a fragment"])
def test_skipping_to_the_pictures_keeps_them(page: Page, how: str) -> None:
    """It was taken for a way back: pictures that were found for one of one's own were gone."""
    page.page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": png(7)})
    page.find("is red")
    found = page.ids()
    if how == "the link":
        page.page.focus("#skip")
        page.page.keyboard.press("Enter")
        assert page.page.evaluate("document.activeElement.id") == "results"
    else:
        page.page.evaluate("location.hash = 'somewhere'")
    page.page.wait_for_timeout(300)
    assert page.ids()[:24] == found[:24]
    assert "is red" in page.page.inner_text("#results-title")
    assert page.page.locator("#picture").is_visible()
    page.pick(found[1])
    page.find("longer")
    page.page.go_back()
    page.shows("#results-title", "is red")
    assert page.ids()[:24] == found[:24]


def test_filters_and_balance_leave_what_is_being_written(page: Page, client: Client) -> None:
    page.pick("sku-4")
    page.find("is red")
    other = page.ids()[1]
    page.pick(other)
    page.page.fill("#text", "not yet")
    page.page.locator("#balance").fill("1")
    page.page.wait_for_function("() => location.search.includes('balance=1')")
    balance = {"implicit_similarity": 0.25, "explicit_matching": 4}
    expected = client.search(item="sku-4", text="is red", k=24, balance=balance).json["hits"]
    page.page.wait_for_function(
        "id => document.querySelector('.facts .meta').title === id", arg=expected[0]["id"]
    )
    assert page.page.input_value("#text") == "not yet"
    assert page.page.get_attribute("#picture", "alt") == f"The item {other}"
    page.page.keyboard.press("Escape")
    page.find("longer")
    assert page.page.locator("#trail button").count() == 2


def test_a_filter_without_a_search_is_in_the_address(page: Page) -> None:
    page.page.click("summary")
    page.page.locator(".chip", has_text="blue").click()
    page.page.wait_for_function("() => location.search.includes('blue')")
    page.page.reload()
    page.shows("#timing", f"{COUNT // 2} items")
    assert page.page.inner_text("#filter-count").strip() == "(1)"


def test_a_search_is_not_given_up_for_more_of_the_last(chromium: Any, own: Path) -> None:
    """Whoever scrolled while it was under way lost it, and the pictures stayed grey."""
    with running(own) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.find("is red")
        searcher = Gated.under(found.service)
        page.page.fill("#text", "longer")
        page.page.keyboard.press("Enter")
        searcher.arrived.acquire()
        page.page.fill("#text", "longer, and")  # somebody goes on writing
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.page.wait_for_timeout(300)
        searcher.gate.set()
        page.shows("#results-title", "longer")
        assert page.page.locator("#grid.old").count() == 0
        assert page.page.input_value("#text") == "longer, and"
        assert page.errors == []


def test_a_tall_window_is_filled_by_every_search(chromium: Any, served: Running) -> None:
    with Page(chromium, served.client.port) as page:
        page.page.set_viewport_size({"width": 1200, "height": 4000})
        page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT}")
        for text in ("is red", "longer"):
            page.page.locator(".pick").nth(3).click()
            page.find(text)
            page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT - 1}")


def test_a_system_that_reads_only_words(chromium: Any, tmp_path: Path) -> None:
    """Its link gave the pictures to start from, and its pictures were offered as references."""
    bundle = make_gallery(tmp_path, "text-only")
    with running(bundle) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        assert page.page.locator(".pick, .more").count() == 0
        assert page.page.locator("#reference").is_hidden()
        words = page.page.locator(".words").bounding_box()
        assert words is not None and words["width"] > 600
        page.find("is red")
        expected = [hit["id"] for hit in found.client.search(text="is red", k=24).json["hits"]]
        assert page.ids()[:24] == expected
        assert page.page.locator("#copy").is_visible()
        page.page.reload()
        page.shows("#results-title", "is red")
        assert page.ids()[:24] == expected
        assert expected[0] in str(page.page.get_attribute(".card img", "alt"))
        assert page.errors == []


def test_a_system_that_reads_only_pictures(chromium: Any, tmp_path: Path) -> None:
    """A picture of the gallery was taken as the reference, and nothing was there to ask with."""
    bundle = make_gallery(tmp_path, "image-only")
    with running(bundle) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.page.wait_for_function("() => location.search === '?item=sku-4'")
        expected = [hit["id"] for hit in found.client.search(item="sku-4", k=24).json["hits"]]
        assert page.ids()[:24] == expected
        page.page.reload()
        page.page.wait_for_selector(".bars")
        assert page.ids()[:24] == expected
        assert page.errors == []
