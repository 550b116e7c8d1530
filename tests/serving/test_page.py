"""The page at /, used in a real browser as people do."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.serving.browser import Page
from tests.serving.support import COUNT, Client, Gated, Running, png, running

KEY = "0123456789abcdef-page"


def test_start_refine_and_go_back(page: Page, client: Client) -> None:
    page.pick("sku-4")
    assert page.page.evaluate("document.activeElement.id") == "text"
    page.find("is red")
    first = [hit["id"] for hit in client.search(item="sku-4", text="is red", k=24).json["hits"]]
    assert page.ids()[:24] == first
    assert page.page.locator(".card").first.locator(".bars i").count() == 2
    page.pick(first[0])
    page.find("longer")
    second = [hit["id"] for hit in client.search(item=first[0], text="longer", k=24).json["hits"]]
    assert page.ids()[:24] == second
    assert page.page.locator("#trail button").count() == 2
    page.page.locator("#trail button").first.click()
    page.shows("#results-title", "is red")
    assert page.ids()[:24] == first
    page.page.go_back()
    page.shows("#results-title", "longer")
    assert page.page.locator("#trail [aria-current=step]").inner_text() == "longer"
    assert "ms (" in page.page.inner_text("#timing")
    drawn = page.page.evaluate("performance.getEntriesByName('answer to drawing').map(one => one.duration)")
    assert len(drawn) >= 2


def test_a_picture_of_ones_own(page: Page, client: Client, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(png(7))
    page.page.set_input_files("#file", tmp_path / "own.png")
    page.find("is blue")
    form = [("text", "is blue"), ("k", "24")]
    expected = client.form("/v1/search", form, png(7)).json
    assert page.ids()[:24] == [hit["id"] for hit in expected["hits"]]
    assert page.page.locator(".itself").count() == 1
    assert page.page.locator("#copy").is_hidden()  # a link cannot hold the picture
    page.page.reload()
    page.page.wait_for_selector(".card")
    assert page.page.input_value("#text") == "is blue"  # it holds the words


@pytest.mark.parametrize("touch", [True, False], ids=["touch", "mouse"])
def test_nothing_covers_what_is_said_on_a_picture(chromium: Any, served: Running, touch: bool) -> None:
    """Where nothing hovers "Why?" always stands there, and stood on "the picture itself"."""
    with Page(chromium, served.client.port, width=360, has_touch=touch, is_mobile=touch) as page:
        page.page.wait_for_selector(".card")
        own = {"name": "own.png", "mimeType": "image/png", "buffer": png(7)}
        page.page.set_input_files("#file", [own])
        page.find("is red")
        card = page.page.locator(".card:has(.itself)")
        card.hover()
        overlaps = """card => {
            const shown = [...card.querySelectorAll('.ask-why, .itself, .more')]
                .filter((one) => getComputedStyle(one).opacity !== '0' && one.getClientRects().length)
                .map((one) => one.getBoundingClientRect());
            const over = (a, b) =>
                a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
            return [shown.length, shown.some((a, at) => shown.slice(at + 1).some((b) => over(a, b)))];
        }"""
        assert card.evaluate(overlaps) == [2, False]
        assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_transparent_picture_has_no_colour_of_the_page(
    chromium: Any, served: Running, tmp_path: Path, scheme: str
) -> None:
    """Its tile was empty where the picture had the page's colour; the encoder takes what lies below."""
    Image.new("RGBA", (60, 60), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    with Page(chromium, served.client.port, color_scheme=scheme) as page:
        page.page.set_input_files("#file", tmp_path / "clear.png")
        page.page.wait_for_function("() => document.querySelector('#picture').naturalWidth == 60")
        shot = page.page.locator("#picture").screenshot()
        with Image.open(io.BytesIO(shot)) as image:
            assert image.convert("RGB").getpixel((image.width // 2, image.height // 2)) == (0, 0, 0)
        assert page.errors == []


def test_a_transparent_picture_of_ones_own_is_shown_as_it_is_encoded(page: Page, tmp_path: Path) -> None:
    """A white logo was shown on black, where the encoder, which drops alpha, took nothing but white."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 60, 4), dtype=np.uint8)
    pixels[:20, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "hidden.png")
    page.page.set_input_files("#file", tmp_path / "hidden.png")
    page.page.wait_for_function("() => document.querySelector('#picture').naturalWidth == 60")
    shown = page.page.evaluate(
        """async () => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [60, 40];
            canvas.getContext("2d").drawImage(document.querySelector("#picture"), 0, 0);
            return canvas.toDataURL().split(",")[1];
        }"""
    )
    with Image.open(io.BytesIO(base64.b64decode(shown))) as image:
        assert (np.asarray(image.convert("RGB")) == pixels[:, :, :3]).all()


def test_dropping_and_pasting(page: Page) -> None:
    for kind, wrap in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.page.click("#home")
        page.page.wait_for_selector("#picture", state="hidden")
        page.page.evaluate(
            """([kind, wrap, bytes]) => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
                const kinds = { drop: DragEvent, paste: ClipboardEvent };
                const how = { [wrap]: data, bubbles: true, cancelable: true };
                const event = new kinds[kind](kind, how);
                document.body.dispatchEvent(event);
            }""",
            [kind, wrap, list(png(9))],
        )
        page.page.wait_for_selector("#picture", state="visible")
        page.find("is red")


def test_filters_balance_and_links(page: Page, client: Client, chromium: Any) -> None:
    page.pick("sku-4")
    page.find("is red")
    page.page.click("summary")
    page.page.get_by_label("price, at most").fill("20")
    page.page.get_by_label("price, at most").press("Tab")
    page.page.wait_for_function("() => location.search.includes('where')")
    page.page.locator(".chip", has_text="blue").click()
    page.page.wait_for_function("() => location.search.includes('blue')")
    page.page.locator("#balance").fill("1")
    page.page.wait_for_function("() => location.search.includes('balance=1')")
    query = {key: value[0] for key, value in parse_qs(urlsplit(page.page.url).query).items()}
    assert json.loads(query["where"]) == {"price": {"<=": 20}, "colour": ["blue"]}
    balance = {"implicit_similarity": 0.25, "explicit_matching": 4}
    expected = client.search(
        item="sku-4", text="is red", k=24, where=json.loads(query["where"]), balance=balance
    ).json
    ids = [hit["id"] for hit in expected["hits"]]
    assert page.ids() == ids
    assert len(ids) == 10
    with Page(chromium, client.port, page.page.url.removeprefix(page.home)) as other:
        other.shows("#results-title", "is red")
        assert other.ids() == ids
        assert other.page.inner_text("#filter-count").strip() == "(2)"
        assert other.page.input_value("#balance") == "1"
        assert other.errors == []


def test_why_a_picture_was_found(page: Page, client: Client) -> None:
    page.pick("sku-4")
    page.find("is red and longer")
    first = page.ids()[0]
    page.page.locator(".ask-why").first.click()
    page.shows("#why", first)
    page.shows("#why", "No part of the reference moves “as the words say”.")
    told_as = "({ decimals }) => [0, -0, -2.3e-5, 0.0625, 1e-12].map((value) => decimals(value, 3))"
    written = page.page.evaluate(f"import('./assets/dom.js').then({told_as})")
    assert written == ["0", "0", "-2.3e-05", "0.063", "1.0e-12"]
    assert page.page.locator(".card canvas.heat").count() == 1
    assert page.page.locator("#tile canvas.heat").count() == 1
    told = client("POST", "/v1/explain", {"item": "sku-4", "text": "is red and longer", "hit": first}).json
    assert page.page.locator("#why mark").all_inner_texts() == [word["text"] for word in told["words"]]
    drawn = """() => {
        const canvas = document.querySelector('.card canvas.heat');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return data.some((value, at) => at % 4 === 3 && value > 0);
    }"""
    assert page.page.evaluate(drawn)
    page.page.locator(".card").nth(1).hover()  # pointing at the next asks of that
    page.shows("#why", page.ids()[1])
    page.page.keyboard.press("Escape")
    page.page.wait_for_selector("#why", state="hidden")
    assert page.page.locator("canvas.heat").count() == 0


def test_everything_is_shown_as_one_scrolls(page: Page) -> None:
    page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT}")
    page.pick("sku-1")
    page.find("is red")
    page.page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.page.wait_for_function(f"() => document.querySelectorAll('.card').length === {COUNT - 1}")
    assert len(set(page.ids())) == COUNT - 1


def test_by_keyboard_alone(page: Page) -> None:
    keyboard = page.page.keyboard
    for _ in range(60):
        keyboard.press("Tab")
        if page.page.evaluate("document.activeElement.classList.contains('pick')"):
            break
    outline = page.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    keyboard.press("Enter")
    keyboard.type("is red")
    keyboard.press("Enter")
    page.shows("#results-title", "is red")
    page.shows("#status", "found")
    for _ in range(12):
        keyboard.press("Tab")
        if page.page.evaluate("document.activeElement.id") == "balance":
            keyboard.press("ArrowRight")
            break
    page.page.wait_for_function("() => location.search.includes('balance=0.125')")
    keyboard.press("Escape")
    page.page.evaluate("document.activeElement.blur()")
    keyboard.press("/")
    assert page.page.evaluate("document.activeElement.id") == "text"


def test_what_goes_wrong_is_said(chromium: Any, bundle: Path) -> None:
    with running(bundle, queue=1) as found, Page(chromium, found.client.port) as page:
        page.page.wait_for_selector(".card")
        page.page.click("#go")
        page.shows("#problem", "A picture is missing")
        page.pick("sku-1")
        page.page.click("#go")
        page.shows("#problem", "The words are missing")
        page.page.set_input_files(
            "#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"}
        )
        page.page.fill("#text", "is red")
        page.page.click("#go")
        page.shows("#problem", "The image cannot be used")
        page.page.set_input_files("#file", {"name": "x.txt", "mimeType": "text/plain", "buffer": b"x"})
        page.shows("#problem", "That is no picture")
        page.pick("sku-2")
        page.find("is purplish")
        page.shows("#unknown", "The model does not know: purplish. Unknown words count as one and the same.")
        searcher = Gated.under(found.service)
        other = threading.Thread(target=lambda: found.client.search(item="sku-1", text="is red"))
        other.start()
        searcher.arrived.acquire()
        page.page.fill("#text", "longer")
        page.page.click("#go")
        page.shows("#problem", "The service is busy")
        searcher.gate.set()
        other.join()
        page.find("longer")
        assert page.page.locator("#problem").is_hidden()


def test_a_key_is_asked_for(chromium: Any, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEY)
    with (
        running(bundle, api_key_file=str(tmp_path / "keys")) as found,
        Page(chromium, found.client.port) as page,
    ):
        page.page.wait_for_selector("#key-dialog[open]")
        page.page.fill("#key-input", "not this one, surely")
        page.page.keyboard.press("Enter")
        page.shows("#key-problem", "not known")
        page.page.fill("#key-input", KEY)
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("() => document.querySelector('.card img')?.src.startsWith('blob:')")
        page.pick("sku-3")
        page.find("is red")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_axe_finds_no_violation(chromium: Any, served: Running, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_core_python", reason="needs axe-core-python, see `make browser`")
    script = Path(axe.__file__).parent / "axe.min.js"
    with Page(chromium, served.client.port, width=width, color_scheme=scheme, bypass_csp=True) as page:
        page.page.wait_for_selector(".card img[src]")
        page.page.evaluate(script.read_text())
        kinds = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        run = f"axe.run(document, {{runOnly: {json.dumps(kinds)}}}).then(told => told.violations)"

        def violations() -> list[str]:
            found = page.page.evaluate(run)
            return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]

        assert violations() == []
        page.pick("sku-4")
        page.find("is red")
        page.page.click("summary")
        assert violations() == []
        page.page.fill("#text", "")
        page.page.click("#go")
        page.shows("#problem", "missing")
        assert violations() == []


def test_a_narrow_page_scrolls_one_way(chromium: Any, served: Running) -> None:
    with Page(chromium, served.client.port, width=320) as page:
        page.page.wait_for_selector(".card")
        page.pick("sku-4")
        page.find("is red and longer and more and longer")
        wide = page.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 320


def test_a_portrait_is_shown_whole(page: Page) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 1200), "red").save(buffer, "PNG")
    page.page.set_input_files(
        "input[type=file]", [{"name": "tall.png", "mimeType": "image/png", "buffer": buffer.getvalue()}]
    )
    page.page.wait_for_function("() => document.querySelector('#picture').naturalHeight === 1200")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    page.page.evaluate("src => document.querySelector('.card .frame img').src = src", address)
    page.page.wait_for_function("() => document.querySelector('.card .frame img').naturalHeight === 1200")
    for inner, outer in (("#picture", ".tile"), (".card .frame img", ".card .frame")):
        height = "s => document.querySelector(s).getBoundingClientRect().height"
        assert page.page.evaluate(height, inner) == pytest.approx(page.page.evaluate(height, outer), abs=1)


def test_an_endless_word_stays_on_the_page(chromium: Any, served: Running) -> None:
    with Page(chromium, served.client.port, width=360) as narrow:
        narrow.page.wait_for_selector(".card")
        narrow.pick("sku-4")
        narrow.find("x" * 300)
        narrow.shows("#unknown", "The model does not know")
        for place in ("#unknown", "#results-title"):
            right = (
                "s => { const r = document.createRange(); r.selectNodeContents(document.querySelector(s));"
            )
            right += " return r.getBoundingClientRect().right }"
            assert narrow.page.evaluate(right, place) <= 360
