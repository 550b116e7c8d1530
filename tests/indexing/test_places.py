"""What cir-index stores as the place of an image is read by every part that takes images."""

from __future__ import annotations

import gc
import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cir_infer import Searcher
from cir_infer.drawing.sheet import contact_sheet
from cir_infer.engine import Engine
from cir_infer.errors import ImageError
from cir_infer.gallery import Gallery
from cir_infer.indexing.run import index
from cir_infer.indexing.sources import open_sources
from cir_infer.inputs.images import load_features, load_image
from cir_infer.inputs.locations import Location, absolute
from tests.bundles import write_tiny_bundle
from tests.indexing.support import folder_of, picture, png, shard_of


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(write_tiny_bundle(tmp_path / "tiny.cir"))


def parquet_of(path: Path, count: int) -> Path:
    import pyarrow
    from pyarrow import parquet

    cells = [{"bytes": png(n), "path": f"p{n}.png"} for n in range(count)]
    parquet.write_table(pyarrow.table({"image": cells}), path)
    return path


def test_every_place_is_read_by_query_reencode_and_sheet(tmp_path: Path, engine: Engine) -> None:
    sources = [
        folder_of(tmp_path / "f", 2),
        shard_of(tmp_path / "s.tar", 3),
        parquet_of(tmp_path / "x.parquet", 3),
    ]
    gallery = Gallery.create(tmp_path / "g", engine, "float32")
    index(gallery, engine, open_sources([str(source) for source in sources]), workers=1)
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    expected = (
        {"0.png": 0, "sub/1.png": 1}
        | {f"s/{n:04d}.png": n for n in range(3)}
        | {f"p{n}.png": n for n in range(3)}
    )
    places = dict(zip(snapshot.ids(rows), snapshot.sources(rows), strict=True))
    assert set(places) == set(expected)
    for name, place in places.items():
        assert place is not None
        np.testing.assert_array_equal(np.asarray(load_image(place)), np.asarray(picture(expected[name])))
    encoded = engine.encode_images([place for place in places.values() if place])
    np.testing.assert_allclose(encoded, snapshot.rows.take(rows), atol=1e-6)
    searcher = Searcher(engine, gallery)
    hits = searcher.query(places["s/0001.png"], "red dress", k=8)
    sheet = contact_sheet(places["p1.png"], "red", hits)
    blank = contact_sheet(png(1), "red", hits)
    assert sheet.size[0] > 0 and blank.size == sheet.size
    again = searcher.query(hits[0].source, "red dress", k=8)
    assert len(again) == 8


def test_features_are_read_from_every_place(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.arange(4, dtype=np.float32))
    data = stream.getvalue()
    (tmp_path / "s.bin").write_bytes(b"before" + data + b"behind")
    np.testing.assert_array_equal(load_features(f"{tmp_path}/s.bin#6+{len(data)}", 4), np.arange(4))
    np.savez(tmp_path / "a.npz", x=np.arange(4))
    gc.collect()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(ImageError):
            load_features(tmp_path / "a.npz", 4)
    assert len(list(Path("/dev/fd").iterdir())) <= before


@given(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1, max_size=40),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
    st.sampled_from(["image", "a b", "jpg"]),
)
def test_places_are_read_back(name: str, offset: int, size: int, column: str) -> None:
    for place in (
        Location(f"/nowhere/{name}.tar", offset, size),
        Location(f"/nowhere/{name}.parquet", offset, None, column),
        Location(f"/nowhere/{name}.png"),
    ):
        assert Location.parse(str(place)) == place


def test_one_place_has_one_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "f" / "a").symlink_to("b")
    monkeypatch.chdir(tmp_path)
    for spelled in ("f/a", "./f//a", "link/a", "link/../f/a", os.fspath(tmp_path / "link" / "a")):
        assert absolute(spelled) == f"{tmp_path}/f/a", "the entry keeps its own name, whatever it links to"
    assert absolute("/") == "/"
