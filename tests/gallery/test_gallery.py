from __future__ import annotations

import os
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cir_infer.engine import Engine
from cir_infer.errors import GalleryError, ImageError, UsageError
from cir_infer.gallery import Gallery
from tests.bundles import write_tiny_bundle
from tests.gallery.support import DIM, filled, names, other_process, rows_of, vectors

TOLERANCE = {"float32": 0.0, "float16": 2e-3, "int8": 2e-2}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(write_tiny_bundle(tmp_path / "tiny.cir"))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_rows_come_back_as_they_were_added(tmp_path: Path, dtype: str) -> None:
    rows = vectors(50) * 3
    with filled(tmp_path / "g", 0, dtype=dtype) as gallery:
        gallery.add_vectors(ids=names(30), vectors=rows[:30])
        gallery.add_vectors(ids=names(20, "j"), vectors=rows[30:])
    snapshot = Gallery.open(tmp_path / "g").snapshot()
    assert snapshot.count == snapshot.rows.count == 50 and snapshot.live is None
    assert snapshot.rows.dtype == dtype and snapshot.dimension == DIM
    error = np.abs(snapshot.rows.take(range(50)) - rows).max()
    assert error <= TOLERANCE[dtype] * np.abs(rows).max()
    np.testing.assert_array_equal(snapshot.vector(31), snapshot.rows.take([31])[0])
    assert snapshot.ids([31, 0]) == ["j1", "i0"]
    assert snapshot.row("j1") == 31 and snapshot.row("nobody") is None


def test_blocks_are_mapped_read_only(tmp_path: Path) -> None:
    snapshot = filled(tmp_path / "g").snapshot()
    assert not snapshot.rows.blocks[0].flags.writeable
    assert snapshot.rows.blocks[0].ctypes.data % 64 == 0


def test_metadata_and_sources_come_back(tmp_path: Path) -> None:
    data = {"price": 3.5, "tags": ["a", "b"], "size": {"h": 1}, "note": None, "text": "Grüße 你好 \x00 end"}
    with filled(tmp_path / "g", 0) as gallery:
        gallery.add_vectors(
            ids=["a", "b"], vectors=vectors(2), metadata=[data, None], sources=["/x/a.jpg", None]
        )
    snapshot = Gallery.open(tmp_path / "g", read_only=True).snapshot()
    assert snapshot.metadata([1, 0]) == [{}, data]
    assert snapshot.sources([1, 0]) == [None, "/x/a.jpg"]


def test_items_that_exist_are_refused_replaced_or_skipped_as_asked(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 3)
    new = vectors(2, seed=9)
    with pytest.raises(GalleryError, match=r"already holds id 'i1' \(1 of 2"):
        gallery.add_vectors(ids=["new", "i1"], vectors=new)
    assert gallery.ids == ["i0", "i1", "i2"]
    assert gallery.add_vectors(ids=["new", "i1"], vectors=new, existing="skip") == 1
    assert gallery.ids == ["i0", "i1", "i2", "new"]
    assert gallery.add_vectors(ids=["i1"], vectors=new[1:], metadata=[{"a": 1}], existing="replace") == 1
    assert gallery.ids == ["i0", "i2", "new", "i1"] and len(gallery) == 4
    snapshot = gallery.snapshot()
    row = snapshot.row("i1")
    assert row is not None and snapshot.metadata([row]) == [{"a": 1}]
    np.testing.assert_allclose(snapshot.vector(row), new[1], atol=2e-3)
    with pytest.raises(UsageError, match="existing"):
        gallery.add_vectors(ids=["x"], vectors=new[:1], existing="ignore")  # type: ignore[arg-type]


def test_removed_items_are_gone_and_can_come_back(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 5)
    assert gallery.remove(["i1", "i3"]) == 2
    snapshot = gallery.snapshot()
    assert gallery.ids == ["i0", "i2", "i4"] and len(gallery) == snapshot.count == 3
    assert rows_of(snapshot.live, 5) == [0, 2, 4]
    assert snapshot.row("i1") is None and "i1" not in gallery and "i0" in gallery
    with pytest.raises(GalleryError, match="no id 'i1'"):
        gallery.remove(["i0", "i1"])
    assert gallery.remove(["i0", "i1"], missing="skip") == 1
    gallery.add_vectors(ids=["i1"], vectors=vectors(1))
    assert gallery.ids == ["i2", "i4", "i1"]
    gallery.remove(["i1", "i2", "i4"])
    assert len(gallery) == 0 and gallery.ids == []


@pytest.mark.parametrize(
    ("bad", "dtype", "message"),
    [
        (np.nan, "float16", "NaN or infinity"),
        (np.inf, "float32", "NaN or infinity"),
        (1e39, "float32", "NaN or infinity"),
        (70000.0, "float16", "beyond float16"),
        (None, "int8", "zero everywhere"),
    ],
)
def test_a_vector_that_cannot_be_stored_is_named(
    tmp_path: Path, bad: float, dtype: str, message: str
) -> None:
    rows = vectors(4).astype(np.float64)
    if bad is None:
        rows[2] = 0
    else:
        rows[2, 3] = bad
    gallery = filled(tmp_path / "g", 0, dtype=dtype)
    with pytest.raises(GalleryError, match=f"'i2'.*{message}"):
        gallery.add_vectors(ids=names(4), vectors=rows)
    assert len(gallery) == 0


def test_a_row_that_float16_would_flush_to_zero_is_refused(tmp_path: Path) -> None:
    rows = vectors(1) * 1e-9
    with pytest.raises(GalleryError, match="too small for float16"):
        filled(tmp_path / "g", 0).add_vectors(ids=["a"], vectors=rows)
    filled(tmp_path / "h", 0, dtype="float32").add_vectors(ids=["a"], vectors=rows)
    small = filled(tmp_path / "k", 0, dtype="int8")
    small.add_vectors(ids=["a"], vectors=rows)
    np.testing.assert_allclose(small.snapshot().vector(0), rows[0], atol=1e-11)


def test_a_row_whose_scale_would_be_no_normal_number_is_refused(tmp_path: Path) -> None:
    """Such rows lost their digits, and smaller ones were stored as zeros, which verify calls damage."""
    row = vectors(1) / np.abs(vectors(1)).max()
    with filled(tmp_path / "g", 0, dtype="int8") as gallery:
        for size in (1.4e-36, 1e-38, 1e-39, 1e-44):
            with pytest.raises(GalleryError, match="too small for int8"):
                gallery.add_vectors(ids=["a"], vectors=row * size)
        gallery.add_vectors(ids=["a"], vectors=row * 1.6e-36)
        found = gallery.snapshot().vector(0)
        assert np.abs(found - row[0] * 1.6e-36).max() < 1.6e-36 / 250 and gallery.verify().ok


def test_the_largest_vectors_stay_finite_as_int8(tmp_path: Path) -> None:
    """The scale of float32's largest value was rounded up, so that the row was infinite and never ranked."""
    largest = np.finfo(np.float32).max
    row = np.full((1, DIM), largest / 2, np.float32)
    with filled(tmp_path / "g", 0, dtype="int8") as gallery:
        for number, peak in enumerate([largest, -largest, np.nextafter(largest, np.float32(0))]):
            row[0, number] = peak
            gallery.add_vectors(ids=[f"{number}"], vectors=row)
        found = gallery.snapshot().rows.take([0, 1, 2])
        assert np.isfinite(found).all() and found[0, 0] > 0.999 * largest > -0.999 * largest > found[1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ["a"], "vectors": np.ones((1, DIM + 1))}, r"shape \(1, 9\)"),
        ({"ids": ["a", "b"], "vectors": np.ones((1, DIM))}, "2 ids"),
        ({"ids": ["a"], "vectors": np.array([["x"] * DIM])}, "no array of numbers"),
        ({"ids": ["a", "a"], "vectors": np.ones((2, DIM))}, "'a' comes twice"),
        ({"ids": [""], "vectors": np.ones((1, DIM))}, "non-empty string"),
        ({"ids": [7], "vectors": np.ones((1, DIM))}, "non-empty string"),
        ({"ids": ["\ud800"], "vectors": np.ones((1, DIM))}, "not valid Unicode"),
        ({"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": []}, "0 entries for 1 ids"),
        ({"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": [{"x": float("inf")}]}, "finite number"),
        (
            {"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": [{"x": object()}]},
            "'x' is .* of type object",
        ),
        ({"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": [{1: 2}]}, "has the key 1"),
        ({"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": ["text"]}, "expected a dictionary"),
        ({"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": [{"x": 2**70}]}, "64 bits"),
        (
            {"ids": ["a"], "vectors": np.ones((1, DIM)), "metadata": [{"x": "y" * 2_000_000}]},
            "at most 1,048,576",
        ),
    ],
)
def test_malformed_items_are_refused(tmp_path: Path, arguments: dict, message: str) -> None:
    gallery = filled(tmp_path / "g", 0)
    with pytest.raises(GalleryError, match=message):
        gallery.add_vectors(**arguments)
    assert len(gallery) == 0


def test_ids_as_one_string_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one string"):
        filled(tmp_path / "g").remove("i1")  # type: ignore[arg-type]


def test_an_empty_gallery_has_a_shape(tmp_path: Path) -> None:
    gallery = Gallery.create(tmp_path / "g", dimension=4)
    snapshot = gallery.snapshot()
    assert len(gallery) == 0 and gallery.ids == [] and snapshot.rows.count == 0 and snapshot.dimension == 4
    assert snapshot.matching({"a": 1}) == 0
    assert gallery.add_vectors(ids=[], vectors=np.empty((0, 4))) == 0
    with pytest.raises(GalleryError, match="row 0 asked of a snapshot with 0 rows"):
        snapshot.ids([0])


def test_creating_needs_a_free_path_and_a_shape(tmp_path: Path) -> None:
    filled(tmp_path / "g")
    with pytest.raises(GalleryError, match="already exists"):
        Gallery.create(tmp_path / "g", dimension=4)
    with pytest.raises(UsageError, match="dimension is None"):
        Gallery.create(tmp_path / "h")
    with pytest.raises(UsageError, match="dtype is 'float64'"):
        Gallery.create(tmp_path / "h", dimension=4, dtype="float64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_opening_something_else_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("nowhere", "found nothing"),
        ("file", "found a file"),
        ("folder", "not a gallery"),
    ]:
        with pytest.raises(GalleryError, match=message):
            Gallery.open(tmp_path / name)


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    import sqlite3

    filled(tmp_path / "g").close()
    connection = sqlite3.connect(tmp_path / "g" / "catalogue.sqlite")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(GalleryError, match="found gallery format 7"):
        Gallery.open(tmp_path / "g")


def test_from_arrays_is_whole_or_not_there(tmp_path: Path) -> None:
    rows = vectors(300)
    gallery = Gallery.from_arrays(
        tmp_path / "g", ids=names(300), vectors=rows, metadata=[{"n": n} for n in range(300)]
    )
    assert len(gallery) == 300 and gallery.fingerprint is None and gallery.snapshot().matching("n<10") == 10
    rows[250] = np.nan
    with pytest.raises(GalleryError, match="'i250'"):
        Gallery.from_arrays(tmp_path / "h", ids=names(300), vectors=rows)
    with pytest.raises(GalleryError, match="for 299 ids"):
        Gallery.from_arrays(tmp_path / "h", ids=names(299), vectors=rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g"]


def test_a_gallery_belongs_to_its_bundle(tmp_path: Path, engine: Engine) -> None:
    with Gallery.create(tmp_path / "g", engine) as gallery:
        assert gallery.fingerprint == engine.fingerprint and gallery.dimension == engine.dimension
    Gallery.open(tmp_path / "g", engine).close()
    other = Engine(
        write_tiny_bundle(
            tmp_path / "other.cir", system="separate", embedding_dim=8, image=engine.manifest.image
        )
    )
    if other.fingerprint == engine.fingerprint:
        other = Engine(write_tiny_bundle(tmp_path / "features.cir", system="features"))
    with pytest.raises(GalleryError) as caught:
        Gallery.open(tmp_path / "g", other)
    assert engine.fingerprint in str(caught.value) and other.fingerprint in str(caught.value)


def test_rows_from_elsewhere_must_have_the_dimension_of_the_bundle(tmp_path: Path, engine: Engine) -> None:
    Gallery.from_arrays(tmp_path / "g", ids=["a"], vectors=np.ones((1, engine.dimension))).close()
    Gallery.open(tmp_path / "g", engine).close()
    Gallery.from_arrays(tmp_path / "h", ids=["a"], vectors=np.ones((1, 5))).close()
    with pytest.raises(GalleryError, match="5 dimensions"):
        Gallery.open(tmp_path / "h", engine)


def test_images_are_encoded_and_added(tmp_path: Path, engine: Engine) -> None:
    gallery = Gallery.create(tmp_path / "g", engine, dtype="float32")
    images = [picture(seed) for seed in range(5)]
    assert gallery.add(images, ids=names(5), metadata=[{"n": n} for n in range(5)]) == 5
    np.testing.assert_array_equal(gallery.snapshot().rows.take(range(5)), engine.encode_images(images))
    assert gallery.add(images, ids=names(5), existing="skip") == 0
    with pytest.raises(GalleryError, match="already holds"):
        gallery.add(images, ids=names(5))
    with pytest.raises(ImageError):
        gallery.add([picture(), b"not an image"], ids=["x", "y"])
    with pytest.raises(GalleryError, match="images has 2 entries for 1 ids"):
        gallery.add([picture(), picture()], ids=["x"])
    assert len(gallery) == 5
    with pytest.raises(UsageError, match="without an engine"):
        Gallery.open(tmp_path / "g", read_only=True).add([picture()], ids=["x"])


def test_one_writer_at_a_time_across_processes(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    gallery = Gallery.open(tmp_path / "g", wait=0.2)
    code = (
        "import sys, numpy as np; from cir_infer.gallery import Gallery\n"
        "gallery = Gallery.open(sys.argv[1])\n"
        "with gallery.writing():\n"
        "    gallery.add_vectors(ids=['theirs'], vectors=np.ones((1, 8)))\n"
        "    print('holding', flush=True); sys.stdin.readline()\n"
    )
    with other_process(code, tmp_path / "g") as (other, told, said):
        assert said.readline() == "holding\n"
        with pytest.raises(GalleryError, match=f"process {other.pid} is writing.*one writer at a time"):
            gallery.remove(["i1"])
        assert "theirs" in gallery  # reading goes on, and sees what was committed
        told.write("\n")
        told.flush()
        other.wait()
    assert gallery.remove(["i1", "theirs"]) == 2


def test_two_objects_in_one_process_are_two_writers(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "g"), Gallery.open(tmp_path / "g")
    with one.writing(), pytest.raises(GalleryError, match="is writing"):
        two.remove(["i1"])
    two.remove(["i1"])
    assert "i1" not in one


def test_read_only_refuses_every_change(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    gallery = Gallery.open(tmp_path / "g", read_only=True)
    for change in (
        lambda: gallery.remove(["i1"]),
        lambda: gallery.add_vectors(ids=["x"], vectors=vectors(1)),
        gallery.compact,
    ):
        with pytest.raises(GalleryError, match="reading only"):
            change()
    assert len(gallery) == 10 and gallery.verify().ok


def unprivileged(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code as a user who may not write to a gallery; sys.argv[1] is its path."""
    # Imports come first: another user may not be able to read this one's Python.
    drop = (
        "import os, sys, traceback, encodings.idna, cir_infer.gallery\n"
        "from cir_infer.gallery import Gallery\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", drop + code, str(path)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A closed gallery that others may read but not change; reachable also for another user."""
    path = tmp_path / "g"
    filled(path).close()
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            if folder.stat().st_uid != os.getuid():
                pytest.skip("the temporary folder cannot be opened to another user")
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    for entry in (path, *path.rglob("*")):
        entry.chmod(0o555 if entry.is_dir() else 0o444)
    return path


READ = "with Gallery.open(sys.argv[1], read_only=True) as g: print(len(g), g.ids[3])\n"


def test_a_gallery_on_a_read_only_medium_can_be_read(shared: Path) -> None:
    result = unprivileged(shared, READ)
    assert result.stdout == "10 i3\n", result.stderr
    assert not list(shared.glob("catalogue.sqlite-*"))


def test_a_reader_without_permissions_keeps_writers_out(shared: Path) -> None:
    code = "g = Gallery.open(sys.argv[1])\ng.remove(['i1'])\n"
    result = unprivileged(shared, code)
    assert result.returncode == 1 and "cannot be written to" in result.stderr.splitlines()[-1]


FORKED = """
import fcntl
from cir_infer.gallery.disk.folder import LOCK
gallery = Gallery.open(sys.argv[1], read_only=True)
snapshot, (told, tells) = gallery.snapshot(), os.pipe()
if os.fork() == 0:
    os.read(told, 1)  # until the parent has let go
    with open(os.path.join(sys.argv[1], LOCK)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("nobody keeps writers out")
        except BlockingIOError:
            print(len(gallery), gallery.ids[3], snapshot.ids([3]))
    sys.exit(0)
gallery.close()
os.write(tells, b"!")
os.wait()
"""


def test_a_forked_child_of_a_reader_without_permissions_keeps_writers_out(shared: Path) -> None:
    result = unprivileged(shared, FORKED)
    assert (result.stdout, result.stderr) == ("10 i3 ['i3']\n", "")


def test_a_closed_gallery_says_so(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    gallery.close()
    gallery.close()
    assert "closed" in repr(gallery)
    for use in (gallery.snapshot, lambda: len(gallery), lambda: gallery.remove(["i1"])):
        with pytest.raises(GalleryError, match="closed"):
            use()


def test_ids_and_rows_are_not_loaded_when_opening(tmp_path: Path) -> None:
    count = 20_000
    Gallery.from_arrays(tmp_path / "g", ids=names(count), vectors=vectors(count, dimension=16)).close()
    tracemalloc.start()
    try:
        gallery = Gallery.open(tmp_path / "g")
        assert len(gallery) == count and gallery.snapshot().rows.count == count
        opening = tracemalloc.get_traced_memory()[1]
        assert len(gallery.ids) == count
        listing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert opening < 16 * count < listing  # bytes: listing makes a text for each
