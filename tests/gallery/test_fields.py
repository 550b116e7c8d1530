from __future__ import annotations

from pathlib import Path

from cir_infer.gallery import Gallery
from tests.gallery.support import filled, names, vectors


def test_fields_say_what_filters_can_ask(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        gallery.add_vectors(
            ids=names(6),
            vectors=vectors(6),
            metadata=[
                {"price": 3, "new": True, "tags": ["a", "b", "a"], "size": {"h": 1.5}},
                {"price": 2.5, "tags": "a", "note": None},
                {"price": "on request", "new": False},
                {"price": -(2**40)},
                None,
                {"price": 10**6},
            ],
        )
        gallery.remove(["i5"])
        found = {field.name: field for field in gallery.fields()}
    assert list(found) == ["new", "price", "size.h", "tags"]
    price = found["price"]
    assert (price.items, price.types) == (4, {"decimal": 1, "integer": 2, "text": 1})
    assert (price.least, price.greatest, price.distinct) == (-(2**40), 3, 4)
    tags = found["tags"]
    assert (tags.items, tags.types, tags.examples) == (2, {"text": 4}, ["a", "b"])
    assert (tags.least, tags.greatest) == ("a", "b")
    assert found["new"].types == {"boolean": 2} and found["new"].least is None
    assert found["size.h"].least == 1.5


def test_fields_of_many_values_stay_small(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", dimension=8) as gallery:
        gallery.add_vectors(
            ids=names(2000),
            vectors=vectors(2000),
            metadata=[
                {"n": n, "long": "x" * 500 + str(n), "word": "odd" if n % 2 else "a"} for n in range(2000)
            ],
        )
        found = {field.name: field for field in gallery.fields()}
    assert (found["n"].distinct, found["n"].least, found["n"].greatest) == (None, 0, 1999)
    assert found["long"].distinct is None and all(len(str(value)) < 130 for value in found["long"].examples)
    assert found["word"].distinct == 2


def test_a_gallery_without_metadata_has_no_fields(tmp_path: Path) -> None:
    assert Gallery.create(tmp_path / "g", dimension=8).fields() == []
    with filled(tmp_path / "h", 3) as gallery:
        assert [field.items for field in gallery.fields()] == [3, 3]
