"""A gallery whose rows another bundle made: which one, and what is to be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cir_infer import Engine, Gallery, Searcher
from cir_infer.bundle import write_bundle
from cir_infer.errors import GalleryError
from tests.bundles import image_graph, manifest_of, members_of, write_tiny_bundle

ONE = "1" * 64


def other(path: Path) -> Path:
    members = {**members_of("artemis"), "image.onnx": image_graph(seed=1)}
    write_bundle(path, manifest_of("artemis"), members)
    return path


def engine_of(path: Path) -> Engine:
    return Engine(path, device="cpu", threads=1)


def refusal(gallery: Path, bundle: Path) -> str:
    with engine_of(bundle) as engine, pytest.raises(GalleryError) as refused:
        Searcher(engine, gallery)
    return str(refused.value)


def test_both_bundles_are_named_where_they_lie_side_by_side(tmp_path: Path) -> None:
    made, asked = other(tmp_path / "made.cir"), write_tiny_bundle(tmp_path / "asked.cir")
    (tmp_path / "none.cir").write_bytes(b"no bundle")
    (tmp_path / "folder.cir").mkdir()
    with engine_of(made) as engine, Gallery.create(tmp_path / "g", engine) as gallery:
        gallery.add([np.zeros((32, 32, 3), np.uint8)], ids=["a"])
        prints = engine.fingerprint
    said = refusal(tmp_path / "g", asked)
    assert f"encoded by bundle '{prints}': {made} (artemis, float32). This bundle is " in said
    assert f"{asked} (artemis, float32)" in said and "Use made.cir, or" in said and "--reencode" in said
    made.unlink()
    assert f"'{prints}': no bundle beside. This bundle is " in refusal(tmp_path / "g", asked)


def test_rows_of_another_shape_are_told(tmp_path: Path) -> None:
    asked = write_tiny_bundle(tmp_path / "asked.cir")
    vectors = np.ones((2, 5), np.float32)
    Gallery.from_arrays(tmp_path / "g", ids=["a", "b"], vectors=vectors, fingerprint=ONE).close()
    said = refusal(tmp_path / "g", asked)
    with engine_of(asked) as engine:
        assert ", rows of 5. This bundle is " in said and f", rows of {engine.dimension}. Use " in said


def test_photos_that_were_turned_are_of_the_bundle_that_turns_them(tmp_path: Path) -> None:
    made, asked = other(tmp_path / "made.cir"), write_tiny_bundle(tmp_path / "asked.cir")
    with Engine(made, device="cpu", threads=1, exif_orientation=True) as engine:
        Gallery.create(tmp_path / "turned", engine).close()
    with Engine(made, device="cpu", threads=1, exif_orientation=False) as engine:
        Gallery.create(tmp_path / "plain", engine).close()
    for gallery in ("turned", "plain"):
        assert f"{made} (artemis, float32)" in refusal(tmp_path / gallery, asked)
