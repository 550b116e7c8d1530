"""What stores are asked of folders, and of what may be gone, is asked at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cir_infer.indexing import stores
from cir_infer.indexing.items import Item
from cir_infer.indexing.sources import open_source
from cir_infer.inputs import store_asking
from cir_infer.inputs.locations import are_gone
from cir_infer.inputs.store_asking import AHEAD
from tests.indexing.object_store import Store, Together, eight_photos
from tests.indexing.support import png

pytest.importorskip("pyarrow")


@pytest.fixture
def store() -> Iterator[Store]:
    with eight_photos() as there:
        yield there


def ids(address: str) -> list[str]:
    return [one.id for one in open_source(address).items() if isinstance(one, Item)]


def test_folders_are_listed_at_once(store: Store) -> None:
    expected = []
    for number in range(6):
        for name in ("a.png", "deep/b.png", "deep/c"):
            store.put(f"shelf/{number}/{name}", png(number))
            expected.append(f"{number}/{name}")
    store.before = together = Together(6, lambda method, key: key.count("/") == 2 and key.endswith("/"))
    assert ids("s3://shop/shelf") == expected
    assert together.gone == [f"shelf/{number}/" for number in range(6)]


def test_what_has_no_ending_is_looked_into_at_once(store: Store) -> None:
    for number in range(8):
        store.put(f"plain/{number}", png(number) if number % 2 else b"a text that is long enough")
    source = open_source("s3://shop/plain")
    store.before = together = Together(8, lambda method, key: method == "GET" and len(key) > len("plain/"))
    found = [one.id for one in source.items()]
    assert found == ["1", "3", "5", "7"] and source.survey.left_out == {"without an ending": 4}
    assert len(together.came) == 8


def test_of_large_folders_one_is_listed_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was listed ahead and is large is listed again when it is come to, and then no more ahead."""
    monkeypatch.setattr(stores, "_ONE_ANSWER", 4)
    expected = []
    for folder in range(3 * AHEAD):
        for number in range(5):
            store.put(f"shelf/{folder:03}/{number}.png", png(number))
            expected.append(f"{folder:03}/{number}.png")
    store.page = 1000
    found = []
    for one in open_source("s3://shop/shelf").items():
        found.append(one.id)
        listed = {key for _, key in store.requests if key.endswith("/") and key.count("/") == 2}
        assert len(listed) <= AHEAD + 2 + len({name.partition("/")[0] for name in found})
    assert found == expected
    listings = [key for _, key in store.requests if key.endswith("/") and key.count("/") == 2]
    assert len(listings) <= 3 * AHEAD + AHEAD + 2


def test_one_listing_without_end_among_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the memory of all; asked alone each says what it is."""
    monkeypatch.setattr(store_asking, "_MEMORY", 16 << 20)
    for folder in "abcd":
        for number in range(1001 if folder == "b" else 2):
            store.put(f"many/{folder}/{number}-{'x' * 200}.png", b"")
    store.page, store.endless = 1000, "many/b/"
    found = list(open_source("s3://shop/many").items())
    assert [one.id for one in found if isinstance(one, Item)] == [
        f"{folder}/{number}-{'x' * 200}.png" for folder in "acd" for number in range(2)
    ]
    (broken,) = (one for one in found if not isinstance(one, Item))
    assert broken.id == "b" and "takes more than 16 MiB; does it say without end" in broken.reason


def test_what_is_gone_is_asked_at_once(store: Store, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"")
    asked = [f"s3://shop/photos/{name}.png" for name in (*range(4), "x", "y")]
    del store.objects["photos/3.png"]
    store.before = Together(6, lambda method, key: method == "HEAD")
    gone = list(are_gone([str(tmp_path / "here.png"), *asked, str(tmp_path / "none.png")]))
    assert gone == [False, False, False, False, True, True, True, True]
