from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cir_infer.errors import GalleryError, UsageError
from cir_infer.gallery import Gallery
from cir_infer.gallery.copies import exported
from cir_infer.gallery.rows.tensors import Tensor, write_tensors
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
    monkeypatch.setattr(exported, "_PART", 3)
    gallery.export(tmp_path / target)
    with pytest.raises(GalleryError, match="already exists"):
        gallery.export(tmp_path / target)
    again = Gallery.import_from(tmp_path / "again", tmp_path / target)
    assert contents(again) == contents(gallery)
    assert again.snapshot().matching("category = dress") == 1 and again.verify().ok


def test_an_import_fills_an_empty_folder_and_leaves_it_empty_when_it_fails(
    gallery: Gallery, tmp_path: Path
) -> None:
    gallery.export(tmp_path / "out.safetensors")
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    with pytest.raises(GalleryError, match="zero everywhere"):
        Gallery.from_arrays(volume, ids=["a", "b"], vectors=vectors(2) * [[1], [0]])
    assert [entry.name for entry in volume.iterdir()] == ["lost+found"]
    inode = volume.stat().st_ino
    with Gallery.import_from(volume, tmp_path / "out.safetensors") as again:
        assert contents(again) == contents(gallery) and again.verify().ok
    assert volume.stat().st_ino == inode
    with pytest.raises(GalleryError, match="already exists"):
        Gallery.import_from(volume, tmp_path / "out.safetensors")


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
    gallery = Gallery.import_from(
        tmp_path / "g", tmp_path / "x.safetensors", dtype="float32", unknown_fingerprint=True
    )
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
    gallery = Gallery.import_from(tmp_path / "g", folder, unknown_fingerprint=True)
    assert len(gallery) == 9 and gallery.ids[4] == "1/0.jpg"
    snapshot = gallery.snapshot()
    assert snapshot.metadata([4]) == [{"caption": "caption 0", "width": 0, "license": "cc"}]
    assert snapshot.sources([8]) == ["10/2.jpg"]
    np.testing.assert_array_equal(snapshot.rows.blocks[2], vectors(3, 10).astype(np.float16))


def test_rows_without_a_table_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "x" / "img_emb").mkdir(parents=True)
    for number in range(2):
        np.save(tmp_path / "x" / "img_emb" / f"img_emb_{number}.npy", vectors(3, number))
    gallery = Gallery.import_from(tmp_path / "g", tmp_path / "x", unknown_fingerprint=True)
    assert gallery.ids == names(6, "")


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
            Gallery.import_from(tmp_path / "g", source, unknown_fingerprint=True)
        assert not (tmp_path / "g").exists()
    assert not list(tmp_path.glob(".*"))


LAYOUTS = pytest.mark.parametrize("target", ["out.safetensors", "out"])
FINGERPRINT = "ab" * 32


@LAYOUTS
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_an_export_keeps_what_the_rows_are(tmp_path: Path, target: str, dtype: str) -> None:
    with filled(tmp_path / "g", 5, dtype=dtype, fingerprint=FINGERPRINT) as gallery:
        gallery.export(tmp_path / target)
        with Gallery.import_from(tmp_path / "again", tmp_path / target) as again:
            assert (again.fingerprint, again.dtype) == (FINGERPRINT, dtype)
            assert contents(again) == contents(gallery)
        same = Gallery.import_from(tmp_path / "same", tmp_path / target, fingerprint=FINGERPRINT)
        assert same.fingerprint == FINGERPRINT
        with pytest.raises(GalleryError, match=r"encoded by bundle abab.*not by other"):
            Gallery.import_from(tmp_path / "other", tmp_path / target, fingerprint="other")
        assert not (tmp_path / "other").exists()


def test_rows_of_nobody_knows_which_bundle_need_a_word(tmp_path: Path) -> None:
    (tmp_path / "x" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "x" / "img_emb" / "img_emb_0.npy", vectors(3))
    with pytest.raises(GalleryError, match="nothing says which bundle"):
        Gallery.import_from(tmp_path / "g", tmp_path / "x")
    assert not (tmp_path / "g").exists()
    assert Gallery.import_from(tmp_path / "g", tmp_path / "x", fingerprint="f").fingerprint == "f"
    assert Gallery.import_from(tmp_path / "h", tmp_path / "x", unknown_fingerprint=True).fingerprint is None


@LAYOUTS
def test_an_empty_gallery_comes_back_empty(tmp_path: Path, target: str) -> None:
    with Gallery.create(tmp_path / "g", dimension=5, fingerprint=FINGERPRINT) as gallery:
        gallery.export(tmp_path / target)
    with Gallery.import_from(tmp_path / "again", tmp_path / target) as again:
        assert (len(again), again.dimension, again.fingerprint) == (0, 5, FINGERPRINT)
        assert again.verify().ok


@LAYOUTS
def test_only_an_earlier_export_is_overwritten(gallery: Gallery, tmp_path: Path, target: str) -> None:
    gallery.export(tmp_path / target)
    gallery.remove(["a"])
    gallery.export(tmp_path / target, overwrite=True)
    assert "a" not in Gallery.import_from(tmp_path / "again", tmp_path / target)
    foreign = tmp_path / f"foreign{Path(target).suffix}"
    if foreign.suffix:
        foreign.write_bytes(b"precious")
    else:
        foreign.mkdir()
        (foreign / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(GalleryError, match="no export of a gallery"):
        gallery.export(foreign, overwrite=True)
    held = foreign if foreign.suffix else foreign / "photo.jpg"
    assert held.read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*"))


def test_an_altered_export_is_refused(gallery: Gallery, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exported, "_PART", 3)
    gallery.export(tmp_path / "out")

    def refused(match: str) -> None:
        with pytest.raises(GalleryError, match=match):
            Gallery.import_from(tmp_path / "again", tmp_path / "out")

    first, second = (tmp_path / "out" / "img_emb" / f"img_emb_{number}.npy" for number in (0, 1))
    first.rename(tmp_path / "kept")
    refused("numbers of img_emb")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    refused("img_emb_0.npy is not what was exported")
    second.rename(tmp_path / "kept")
    first.rename(second)
    (tmp_path / "kept").rename(first)
    shutil.copy(first, first.with_name("img_emb_00.npy"))
    refused("same number as")
    first.with_name("img_emb_00.npy").unlink()
    assert Gallery.import_from(tmp_path / "again", tmp_path / "out").ids == gallery.ids


def clip_folder(folder: Path, *columns: dict[str, list]) -> Path:
    import pyarrow
    from pyarrow import parquet

    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, column in enumerate(columns):
        rows = len(next(iter(column.values())))
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", vectors(rows, number))
        parquet.write_table(pyarrow.table(column), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (({"image_path": ["a"]}, {"image_path": ["a"]}), "id 'a' comes twice"),
        (({"id": [7.0, float("nan")]},), "the id of row 0 is 7.0"),
        (({"id": ["a", None]},), "the id of row 1 is None"),
        (({"id": [b"a"]},), "expected a text or a whole number"),
        (({"id": ["a"], "price": [3], "metadata": ['{"price": 4}']},), "'price' as a column and"),
    ],
)
def test_what_a_table_leaves_unclear_is_refused(tmp_path: Path, columns: tuple, message: str) -> None:
    folder = clip_folder(tmp_path / "x", *columns)
    with pytest.raises(GalleryError, match=message) as caught:
        Gallery.import_from(tmp_path / "g", folder, unknown_fingerprint=True)
    assert "existing=" not in str(caught.value) and "/.g." not in str(caught.value)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vectors_without_a_direction_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    rows = vectors(3)
    rows[1] = bad
    (tmp_path / "x" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "x" / "img_emb" / "img_emb_0.npy", rows)
    with pytest.raises(GalleryError, match="the vector of id '1'"):
        Gallery.import_from(tmp_path / "g", tmp_path / "x", unknown_fingerprint=True)


def test_a_killed_export_is_no_export(tmp_path: Path) -> None:
    """Killed behind any part, there is nothing at the target."""
    filled(tmp_path / "g", 30).close()
    program = (
        "import os, sys\n"
        "from cir_infer.gallery import Gallery\nfrom cir_infer.gallery.copies import clip_retrieval\n"
        "clip_retrieval._digest = lambda path: os.kill(os.getpid(), 9)\n"
        "Gallery.open(sys.argv[1]).export(sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "g"), str(tmp_path / "out")])
    assert done.returncode == -9 and not (tmp_path / "out").exists()
    Gallery.open(tmp_path / "g").export(tmp_path / "out")
    assert len(Gallery.import_from(tmp_path / "again", tmp_path / "out")) == 30


def test_an_export_of_the_first_release_keeps_its_fingerprint(tmp_path: Path) -> None:
    rows = vectors(2)
    texts = {"ids": ["a", "b"], "metadata": [None, {"n": 1}], "sources": [None, "s"]}
    tensors = [Tensor("embeddings", "float32", rows.shape, [rows])]
    for name, value in texts.items():
        data = np.frombuffer(json.dumps(value).encode(), np.uint8)
        tensors.append(Tensor(name, "uint8", data.shape, [data]))
    about = {"format": "cir-gallery-export", "fingerprint": FINGERPRINT}
    write_tensors(tmp_path / "old.safetensors", tensors, about)
    assert Gallery.import_from(tmp_path / "g", tmp_path / "old.safetensors").fingerprint == FINGERPRINT


@pytest.mark.parametrize("name", ["x.csv", "x.JSONL", "x.parquet", "x.npy", "x.tar.gz"])
def test_an_export_is_not_given_the_name_of_another_kind_of_file(tmp_path: Path, name: str) -> None:
    with (
        filled(tmp_path / "g") as gallery,
        pytest.raises(UsageError, match=r"\.safetensors file, or a folder"),
    ):
        gallery.export(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("place", ["", "inside", "rows/x.safetensors", "../link/x.safetensors"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_exported_into_the_gallery(tmp_path: Path, place: str, overwrite: bool) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "g")
    with filled(tmp_path / "g") as gallery:
        before = sorted((tmp_path / "g").rglob("*"))
        with pytest.raises(GalleryError, match=r"the gallery itself|inside the gallery"):
            gallery.export(tmp_path / "g" / place, overwrite=overwrite)
        assert [path for path in sorted((tmp_path / "g").rglob("*")) if "readers" not in path.parts] == [
            path for path in before if "readers" not in path.parts
        ]


def test_places_whose_names_are_not_utf8_are_places(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()
    with filled(odd / "g") as gallery:
        gallery.remove(["i1"])
        assert gallery.verify().ok and gallery.backup(odd / "b").items == 9
        for name in ("x.safetensors", "y") if importlib.util.find_spec("pyarrow") else ("x.safetensors",):
            gallery.export(odd / name)
            with Gallery.import_from(odd / f"from {name}", odd / name, unknown_fingerprint=True) as other:
                assert other.ids == gallery.ids


FULL = """
import resource, signal, sys
from cir_infer import Gallery
from cir_infer.errors import GalleryError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Gallery.open("g") as gallery:
    for room in range(0, 2000, 200):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            gallery.export("out")
        except GalleryError as error:
            print(error)
"""


def test_a_full_disk_is_said_wherever_an_export_meets_it(tmp_path: Path) -> None:
    """NumPy says of it only how much was not written."""
    with Gallery.create(tmp_path / "g", dimension=256) as gallery:
        gallery.add_vectors(ids=names(4), vectors=np.random.default_rng(0).standard_normal((4, 256)))
    done = subprocess.run(
        [sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) > 5 and all("the disk is full" in line for line in lines), lines
    assert not (tmp_path / "out").exists()


def test_what_is_to_be_imported_is_told_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id")
    for name, said in (
        ("nowhere", "nowhere does not exist; expected"),
        ("rows.csv", "is another kind of file"),
    ):
        with pytest.raises(GalleryError, match=said):
            Gallery.import_from(tmp_path / "g", tmp_path / name)
