"""What tells pictures apart without a look into them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cir_eval import pictures
from cir_eval.datasets.genecis import Crops, Shown
from cir_eval.pictures import contents_of_pictures, digest_of_pictures
from tests.bench.layouts import picture


def test_the_same_files_are_the_same_however_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture(tmp_path / "a.png", 1)
    found = digest_of_pictures([tmp_path / "a.png"])
    monkeypatch.chdir(tmp_path)
    assert digest_of_pictures(["a.png"]) == digest_of_pictures([str(tmp_path / "a.png")]) == found


def test_another_place_size_time_or_order_is_another_picture(tmp_path: Path):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        picture(tmp_path / name, seed)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    found = {digest_of_pictures(some) for some in (paths, paths[::-1], paths[:1])}
    os.utime(paths[0], ns=(1, 1))
    found.add(digest_of_pictures(paths))
    paths[0].unlink()
    found.add(digest_of_pictures(paths))
    assert len(found) == 5


def test_arrays_are_told_by_their_content_and_shape():
    flat = np.arange(12, dtype=np.uint8)
    shown = [flat, flat.reshape(3, 4), flat.reshape(4, 3), flat.astype(np.int16), flat + 1, flat.tobytes()]
    assert len({digest_of_pictures([one]) for one in shown}) == 5  # bytes are the flat array
    assert digest_of_pictures([flat, flat]) != digest_of_pictures([flat])


def test_a_part_of_a_picture_is_told_by_its_box_and_not_cut_out(tmp_path: Path):
    (tmp_path / "1.jpg").write_bytes(b"no picture")
    boxes = [(0.0, 0.0, 4.0, 4.0), (1.0, 0.0, 4.0, 4.0), None]
    found = {digest_of_pictures(Crops(tmp_path, [Shown("1.jpg", box)])) for box in boxes}
    assert len(found) == 3


def test_contents_are_the_same_wherever_files_lie_and_others_by_size_or_content(tmp_path: Path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for number in range(600):
            (tmp_path / folder / f"{number}.jpg").write_bytes(b"a" * (1 + number % 7))
    here, there = (
        [tmp_path / folder / f"{number}.jpg" for number in range(600)] for folder in ("here", "there")
    )
    found = contents_of_pictures([here])
    assert (found.count, str(found)) == (600, f"600 in files of {found.bytes:,} bytes")
    os.utime(there[0], ns=(1, 1))
    assert contents_of_pictures([there]) == found == contents_of_pictures([here, here])
    there[599].write_bytes(b"b" * (1 + 599 % 7))
    assert contents_of_pictures([there]) != found
    there[599].write_bytes(b"a" * 9)
    assert contents_of_pictures([there]).bytes != found.bytes
    there[599].unlink()
    assert contents_of_pictures([there]) != found
    assert contents_of_pictures([here[:1], here[1:]]) != found


def test_of_large_pictures_some_are_looked_at_and_the_sizes_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pictures, "_LEAST", 5)
    monkeypatch.setattr(pictures, "_BYTES", 50)
    paths = [tmp_path / f"{number}.jpg" for number in range(20)]
    for path in paths:
        path.write_bytes(b"a" * 10)
    found = contents_of_pictures([paths])
    changed = []
    for path in paths:
        path.write_bytes(b"b" * 10)
        changed.append(contents_of_pictures([paths]) != found)
        path.write_bytes(b"a" * 11)
        assert contents_of_pictures([paths]) != found
        path.write_bytes(b"a" * 10)
    assert 5 <= sum(changed) <= 10


def test_contents_of_arrays(tmp_path: Path):
    rows = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    found = contents_of_pictures([rows])
    assert str(found) == "2" and found == contents_of_pictures([list(rows.copy())])
    assert contents_of_pictures([rows + 1]) != found != contents_of_pictures([rows.reshape(2, 4, 3)])
