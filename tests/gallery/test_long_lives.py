"""What grows for years holds no descriptors, and re-encoding ends however many commits it took."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery, store
from cir_infer.gallery.changes import upkeep
from tests.gallery.interrupts import descriptors, set_others_aside
from tests.gallery.support import DIM, names, vectors

BUNDLE: Any = SimpleNamespace(fingerprint="new", dimension=DIM)


@pytest.fixture(autouse=True)
def quick_collector() -> None:
    set_others_aside()


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + 30, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def old(path: Path, count: int) -> Gallery:
    gallery = Gallery.create(path, dimension=DIM, fingerprint="old")
    gallery.add_vectors(ids=names(count), vectors=vectors(count), metadata=[{"n": n} for n in range(count)])
    return gallery


@pytest.mark.usefixtures("few_descriptors")
def test_segments_hold_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "MANY", 1000)
    with Gallery.create(tmp_path / "g", dimension=DIM) as gallery:
        rows = vectors(120)
        for number in range(120):
            gallery.add_vectors(ids=[f"i{number}"], vectors=rows[number : number + 1])
        snapshot = gallery.snapshot()
        assert snapshot.segment_count == 120
        np.testing.assert_array_equal(snapshot.rows.take(range(120)), rows.astype(np.float16))
        assert not [entry for entry in descriptors() if entry.endswith(".safetensors")]
        del snapshot
        gallery.compact()
        assert gallery.ids == names(120) and gallery.verify().ok


def test_mapped_rows_live_as_long_as_they_are_looked_at(tmp_path: Path) -> None:
    with old(tmp_path / "g", 1000) as gallery:
        rows = gallery.snapshot().rows.blocks[0][3:]
        gallery.remove(names(500))
        gallery.compact()
    np.testing.assert_array_equal(rows, vectors(1000).astype(np.float16)[3:])
    assert not rows.flags.writeable
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path) in maps.read_text()
        del rows, gallery
        descriptors()  # collects garbage
        assert str(tmp_path) not in maps.read_text()


@pytest.mark.usefixtures("few_descriptors")
def test_a_reencoding_of_many_commits_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = 0
    open_segment = store.open_segment

    def counted(*arguments: Any) -> Any:
        nonlocal opened
        opened += 1
        return open_segment(*arguments)

    monkeypatch.setattr(store, "open_segment", counted)
    count = 300
    with old(tmp_path / "g", count) as gallery:
        work = gallery.reencoding(BUNDLE)
        order = np.random.default_rng(0).permutation(work.missing())
        new = vectors(count, 1)
        most = 0
        for key in order.tolist():
            work.add([key], new[key - 1 : key])
            most = max(most, len(list((tmp_path / "g" / "rows").iterdir())))
        assert most <= upkeep.MANY + 10, "they are merged on the way"
        assert opened < 5 * count, "no commit looks at all that was there before"
        assert work.missing().tolist() == [] and work.finish()
        assert gallery.fingerprint == "new" and gallery.ids == names(count)
        np.testing.assert_array_equal(
            gallery.snapshot().rows.take(range(count)), new.astype(np.float16).astype(np.float32)
        )
        assert gallery.snapshot().matching("n < 10") == 10 and gallery.verify().ok
        gallery.compact()
        assert len(list((tmp_path / "g" / "rows").iterdir())) == 1


def test_a_reencoding_goes_on_where_it_was_stopped_and_passes_over_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MANY", 3)
    with old(tmp_path / "g", 40) as gallery:
        gallery.remove(["i7"])
        work = gallery.reencoding(BUNDLE)
        for part in ([1, 5, 3], [5, 2], [8, 9], [20], [10, 30]):
            work.add(part, vectors(40, 1)[np.array(part) - 1])
    with Gallery.open(tmp_path / "g") as gallery:
        work = gallery.reencoding(BUNDLE)
        done = {1, 2, 3, 5, 9, 10, 20, 30}  # 8 is the key of an item that is gone
        assert work.missing().tolist() == sorted(set(range(1, 41)) - done - {8})
        gallery.remove(["i0", "i9"])
        gallery.add_vectors(ids=["late"], vectors=vectors(1))
        assert not work.finish(drop=[2])
        rest = work.missing()
        work.add(rest.tolist(), np.concatenate([vectors(40, 1), vectors(1, 5)])[rest - 1])
        assert work.finish()
        expected = {**{f"i{n}": vectors(40, 1)[n] for n in range(40)}, "late": vectors(1, 5)[0]}
        for gone in ("i0", "i7", "i9"):
            del expected[gone]
        assert set(gallery.ids) == set(expected) and gallery.verify().ok
        snapshot = gallery.snapshot()
        for item, row in expected.items():
            place = snapshot.row(item)
            assert place is not None
            np.testing.assert_array_equal(snapshot.vector(place), row.astype(np.float16))


def test_another_bundle_discards_what_was_made_for_the_one_before(tmp_path: Path) -> None:
    with old(tmp_path / "g", 5) as gallery:
        gallery.reencoding(BUNDLE).add([1, 2], vectors(2))
        other: Any = SimpleNamespace(fingerprint="newer", dimension=DIM)
        assert len(gallery.reencoding(other).missing()) == 5
        assert len(list((tmp_path / "g" / "rows").iterdir())) == 1


def test_without_descriptors_the_error_says_so(tmp_path: Path) -> None:
    old(tmp_path / "g", 3).close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for spare in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(descriptors()) + spare - 1, hard))
        try:
            with Gallery.open(tmp_path / "g") as gallery:
                gallery.remove(["i1"], missing="skip")
                assert len(gallery) == 2
        except GalleryError as error:
            assert "open files" in str(error) and "ulimit -n" in str(error), error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


FULL_DISK = """
import resource, signal, sys, time
import numpy as np
from cir_infer.errors import GalleryError
from cir_infer.gallery import Gallery

# No file may become longer, as on a full disk; SQLite needs space even to open.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
gallery = Gallery.open(sys.argv[1])
snapshot = gallery.snapshot()
print(snapshot.ids(range(2)), snapshot.matching("n < 4"))
for change in (
    lambda: gallery.remove(["i1"]),
    lambda: gallery.add_vectors(ids=["x"], vectors=np.ones((1, 8))),
):
    try:
        change()
    except GalleryError as error:
        print("space" in str(error) or "disk is full" in str(error) or str(error))
print(len(gallery.ids))
other = Gallery.open(sys.argv[1], read_only=True)
print(len(other))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
time.sleep(1.1)
print(len(other))  # whoever only reads lets writers in, too, when there is space again
gallery.remove(["i1"])
gallery.add_vectors(ids=["x"], vectors=np.ones((1, 8)))
print(len(gallery), gallery.ids[-1], gallery.verify().ok, other.ids[-1])
other.close()
gallery.close()
"""


def test_a_full_disk_does_not_forbid_reading_what_was_closed_properly(tmp_path: Path) -> None:
    old(tmp_path / "g", 10).close()
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "g")]
    result = subprocess.run(command, capture_output=True, text=True)
    expected = ["['i0', 'i1'] 4", "True", "True", "10", "10", "10", "10 x True x"]
    assert result.stdout.splitlines() == expected, result.stderr
    with Gallery.open(tmp_path / "g") as gallery:
        assert len(gallery) == 10 and gallery.verify().ok
