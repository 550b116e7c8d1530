"""What tells pictures apart without a look into them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cir_eval.datasets.genecis import Crops, Shown
from cir_eval.pictures import digest_of_pictures
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
