from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery, transfer
from tests.gallery.support import filled, names, vectors

METADATA = [
    {"category": "dress", "price": 3.5, "count": 2, "new": True},
    {"category": "shirt", "price": 4, "tags": ["a", "b"], "size": {"h": 1}},
    None,
    {"id": "confusing", "note": None, "text": "Grüße"},
]


def contents(gallery: Gallery) -> list[tuple]:
    snapshot = gallery.snapshot()
    rows = snapshot.live_rows()
    return list(
        zip(
            snapshot.ids(rows),
            snapshot.rows.take(rows).tolist(),
            snapshot.metadata(rows),
            snapshot.sources(rows),
            strict=True,
        )
    )


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    gallery = filled(tmp_path / "g", 5)
    gallery.remove(["i1"])
    gallery.add_vectors(
        ids=list("abcd"), vectors=vectors(4, 7), metadata=METADATA, sources=["/x/a.jpg", None, None, "d"]
    )
    return gallery


@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_what_is_exported_comes_back(gallery: Gallery, tmp_path: Path, target: str, monkeypatch) -> None:
    monkeypatch.setattr(transfer, "PART", 3)
    gallery.export(tmp_path / target)
    with pytest.raises(GalleryError, match="already exists"):
        gallery.export(tmp_path / target)
    again = Gallery.import_from(tmp_path / "again", tmp_path / target)
    assert contents(again) == contents(gallery)
    assert again.snapshot().matching("category = dress") == 1 and again.verify().ok


def test_an_export_is_plain_safetensors(gallery: Gallery, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    gallery.export(tmp_path / "out.safetensors")
    tensors = safetensors.load_file(tmp_path / "out.safetensors")
    assert tensors["embeddings"].dtype == np.float16 and tensors["embeddings"].shape == (8, 8)
    assert json.loads(tensors["ids"].tobytes())[-1] == "d"


def test_segments_are_plain_safetensors(gallery: Gallery) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    for path in (gallery.path / "rows").iterdir():
        assert safetensors.load_file(path)["rows"].shape[1] == 8


def test_safetensors_of_others_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    rows = vectors(3)
    safetensors.save_file({"features": rows}, tmp_path / "x.safetensors")
    gallery = Gallery.import_from(tmp_path / "g", tmp_path / "x.safetensors", dtype="float32")
    assert gallery.ids == ["0", "1", "2"]
    np.testing.assert_array_equal(gallery.snapshot().rows.take(range(3)), rows)


def test_int8_rows_are_exported_as_numbers(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 4, dtype="int8")
    gallery.export(tmp_path / "x.safetensors")
    again = Gallery.import_from(tmp_path / "h", tmp_path / "x.safetensors", dtype="float32")
    np.testing.assert_array_equal(
        again.snapshot().rows.take(range(4)), gallery.snapshot().rows.take(range(4))
    )


def test_a_clip_retrieval_folder_is_read(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "laion"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for number, count in ((0, 4), (1, 2), (10, 3)):
        np.save(folder / "img_emb" / f"img_emb_{number:04d}.npy", vectors(count, number).astype(np.float16))
        table = {
            "image_path": [f"{number}/{i}.jpg" for i in range(count)],
            "caption": [f"caption {i}" for i in range(count)],
            "width": list(range(count)),
            "metadata": [json.dumps({"license": "cc"})] * count,
        }
        parquet.write_table(pyarrow.table(table), folder / "metadata" / f"metadata_{number:04d}.parquet")
    gallery = Gallery.import_from(tmp_path / "g", folder)
    assert len(gallery) == 9 and gallery.ids[4] == "1/0.jpg"
    snapshot = gallery.snapshot()
    assert snapshot.metadata([4]) == [{"caption": "caption 0", "width": 0, "license": "cc"}]
    assert snapshot.sources([8]) == ["10/2.jpg"]
    np.testing.assert_array_equal(snapshot.rows.blocks[2], vectors(3, 10).astype(np.float16))


def test_rows_without_a_table_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "x" / "img_emb").mkdir(parents=True)
    for number in range(2):
        np.save(tmp_path / "x" / "img_emb" / f"img_emb_{number}.npy", vectors(3, number))
    assert Gallery.import_from(tmp_path / "g", tmp_path / "x").ids == names(6, "")


def test_malformed_imports_leave_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 100)
    folder = tmp_path / "folder"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "img_emb" / "img_emb_0.npy").write_bytes(b"\x93NUMPY nonsense")
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    (pickled / "img_emb").mkdir(parents=True)
    np.save(pickled / "img_emb" / "img_emb_0.npy", np.array([[object()]]), allow_pickle=True)
    for source in (bad, folder, empty, pickled, tmp_path / "nowhere"):
        with pytest.raises(GalleryError, match=source.name):
            Gallery.import_from(tmp_path / "g", source)
        assert not (tmp_path / "g").exists()
    assert not list(tmp_path.glob(".*"))
