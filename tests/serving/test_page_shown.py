"""What the page shows of texts, values and scores of any kind, and of a service that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cir_infer import Engine, Gallery
from tests.serving.browser import Page
from tests.serving.support import COUNT, Client, Running, png, running

LONG = "👩🏽‍🔧" * 40
VALUES: dict[str, list[Any]] = {
    "about": [LONG, "שמלה אדומה", "x" * 100],
    "big": [10**17 + 1, 10**17 + 2, 10**17 + 3],
    "empty": ["", " ", "full"],
    "wide": ["w" * 300, "v" * 300, "u" * 300],
}


@pytest.fixture
def odd(own: Path, tmp_path: Path) -> Path:
    """Three pictures with what catalogues have."""
    gallery = own.with_suffix(".gallery")
    images = [tmp_path / f"odd{number}.png" for number in range(3)]
    for number, image in enumerate(images):
        image.write_bytes(png(number))
    with (
        Engine(own, device="cpu", threads=1) as engine,
        Gallery.open(gallery, engine) as opened,
    ):
        snapshot = opened.snapshot()
        opened.remove(snapshot.ids(range(snapshot.count)))
        metadata = [{name: values[number] for name, values in VALUES.items()} for number in range(3)]
        opened.add(images, ids=["one", "two", "three"], metadata=metadata)
    return own


@pytest.mark.parametrize("text", ["a 👗 is red", "👩🏽‍🔧👗 is longer 👗", "\U0001d4b3 is red"])
def test_words_behind_an_emoji_are_where_they_stand(chromium: Any, served: Running, text: str) -> None:
    """A string of JavaScript counts such a character as two: marks lay beside their words, on its halves."""
    with Page(chromium, served.client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.find(text)
        hit = page.ids()[0]
        page.page.locator(".ask-why").first.click()
        page.shows("#why", hit)
        told = served.client("POST", "/v1/explain", {"item": "sku-4", "text": text, "hit": hit}).json
        assert page.page.locator("#why mark").all_inner_texts() == [word["text"] for word in told["words"]]
        assert page.page.locator("#why p").nth(1).text_content() == text
        assert page.errors == []


def test_bars_are_on_one_scale_when_more_pictures_come(chromium: Any, served: Running) -> None:
    """The first ones were on the scale of the first ones, and a later hit may have more of a term."""
    hits = served.client.search(item="sku-4", text="is red", k=COUNT).json["hits"]
    hits[-1]["terms"]["explicit_matching"] = 2.5
    terms = [list(hit["terms"].values()) for hit in hits]

    def answer(route: Any) -> None:
        told = route.fetch()
        found = told.json()
        found["hits"] = hits[: len(found["hits"])]
        route.fulfill(response=told, json=found)

    with Page(chromium, served.client.port, bypass_csp=True) as page:
        page.page.wait_for_selector(".card")
        page.page.route("**/v1/search", answer)
        page.pick("sku-4")
        page.find("is red")
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT - 1}")
        page.page.add_style_tag(content=".card { content-visibility: visible !important }")
        shares = """() => [...document.querySelectorAll('.card .bars')].map((bars) => [...bars.children].map(
            (bar) => bar.firstChild.getBoundingClientRect().width / bar.getBoundingClientRect().width))"""
        for shown, hit in zip(page.page.evaluate(shares), terms, strict=True):
            assert shown == pytest.approx([max(0, term) / 2.5 for term in hit], abs=0.02)


@pytest.mark.parametrize("width", [360, 1200])
def test_odd_values_are_whole_and_stay_on_the_page(chromium: Any, odd: Path, width: int) -> None:
    with running(odd) as found, Page(chromium, found.client.port, width=width) as page:
        page.page.wait_for_selector(".card")
        page.page.locator(".pick").first.click()
        page.find("שמלה is red 👗")
        page.page.click("summary")
        shown = page.page.locator(".facts .meta").all_text_contents()
        assert len(shown) == 2 and not any("\ufffd" in one or not one.isprintable() for one in shown)
        halved = "() => [...document.body.innerText].filter((one) => /^[\\ud800-\\udfff]$/.test(one)).length"
        assert page.page.evaluate(halved) == 0
        assert all(" · " in one and "≈ 1.00000e+17" in one for one in shown)
        hebrew = page.page.locator(".facts .meta", has_text="שמלה")
        assert hebrew.evaluate("box => getComputedStyle(box).direction") == "rtl"
        chips = page.page.locator(".chip").all_inner_texts()
        assert {"“”", "“ ”", "full"} <= set(chips) and not any(one.strip() == "" for one in chips)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.page.locator("#text").evaluate("box => getComputedStyle(box).direction") == "rtl"
        assert page.errors == []


def test_fields_beyond_the_controls_are_told(chromium: Any, own: Path) -> None:
    with (
        Engine(own, device="cpu", threads=1) as engine,
        Gallery.open(own.with_suffix(".gallery"), engine) as gallery,
    ):
        gallery.set_metadata(["sku-1"], [{f"field {number}": number for number in range(15)}])
    with running(own) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        count = len(found.client("GET", "/v1/fields").json["fields"])
        page.page.click("summary")
        assert page.page.inner_text("#filter-rest").startswith(
            f"{count - 12} more fields have no filter here"
        )


def test_a_service_that_comes_back_is_asked_again(chromium: Any, client: Client) -> None:
    """ "Find" did nothing, and said nothing, where the page had begun without it."""
    with Page(chromium, client.port, "/openapi.json") as page:
        gone = {"v1/info": True, "v1/items?": False}

        def answer(route: Any) -> None:
            if any(gone[part] and part in route.request.url for part in gone):
                route.abort()
            else:
                route.continue_()

        page.page.route("**/v1/*", answer)
        page.page.goto(page.home)
        page.shows("#problem", "The service cannot be reached")
        page.page.fill("#text", "is red")
        page.page.click("#go")
        page.shows("#problem", "The service cannot be reached")
        page.page.click("#random")
        page.shows("#problem", "The service cannot be reached")
        gone["v1/info"] = False
        page.page.locator("#problem button", has_text="Try again").click()
        page.page.wait_for_selector(".card")
        assert page.page.locator("#problem").is_hidden()
        gone["v1/items?"] = True
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.shows("#end", "The service cannot be reached")  # where the reader is
        gone["v1/items?"] = False
        page.page.locator("#end button").click()
        page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT}")
        assert page.page.inner_text("#end").strip() == ""


def test_a_problem_is_in_sight_of_whoever_scrolled_and_can_be_closed(chromium: Any, client: Client) -> None:
    with Page(chromium, client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.find("is red")
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT - 1}")
        page.page.route("**/v1/explain", lambda route: route.abort())
        page.page.locator(".ask-why").last.click()
        page.shows("#problem", "The service cannot be reached")
        top = page.page.locator("#problem").evaluate("box => box.getBoundingClientRect().top")
        assert 0 <= top < 800
        page.page.locator("#problem button", has_text="Close").click()
        assert page.page.locator("#problem").is_hidden()


def test_the_keyboard_stays_where_it_was(chromium: Any, client: Client) -> None:
    """What is drawn anew, or goes, took the focus with it, and Tab began at the top of the page."""
    focused = "document.activeElement.innerText || document.activeElement.id"
    with Page(chromium, client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.find("is red")
        page.page.locator("#go").focus()
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("() => !document.querySelector('#grid.old')")
        assert page.page.evaluate(focused) == "Find"
        page.pick(page.ids()[1])
        page.find("longer")
        page.page.locator("#trail button").first.focus()
        page.page.keyboard.press("Enter")
        page.shows("#results-title", "is red")
        assert page.page.evaluate(focused) == "is red"
        page.page.click("summary")
        page.page.locator(".chip", has_text="blue").click()
        page.page.wait_for_function("() => location.search.includes('blue')")
        page.page.locator("#filter-clear").focus()
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("() => !location.search.includes('blue')")
        assert page.page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert page.errors == []


@pytest.mark.parametrize("most", [10, 30])
def test_where_no_more_are_given_the_page_says_so(chromium: Any, bundle: Path, most: int) -> None:
    with running(bundle, max_k=most) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.find("is red")
        page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.shows("#end", f"These are the best {most}, as many as one search gives.")
        assert page.page.locator(".card").count() == most
        page.page.click("#home")
        page.shows("#results-title", "Start from one of these")
        assert page.page.inner_text("#end").strip() == ""


def test_a_text_that_is_too_long_is_refused_and_not_cut(chromium: Any, client: Client) -> None:
    """The field took 5,000 characters of what was pasted, and said nothing."""
    with Page(chromium, client.port) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.page.keyboard.insert_text("x" * 4_999 + "yz")
        page.page.keyboard.press("Enter")
        page.shows("#problem", "more than 5000 characters")
