from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_infer.errors import UsageError
from cir_infer.gallery import Gallery
from cir_infer.gallery.inspection import duplicates
from tests.gallery.support import filled, names, vectors


def expected(rows: np.ndarray, ids: list[str], threshold: float) -> list[list[str]]:
    """Connected components of the pairs above the threshold, by brute force in float64."""
    rows = rows.astype(np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    alike = rows @ rows.T >= threshold
    groups, left = [], set(range(len(rows)))
    for first in range(len(rows)):
        if first not in left:
            continue
        group, todo = set(), {first}
        while todo:
            row = todo.pop()
            group.add(row)
            todo |= set(np.flatnonzero(alike[row])) - group
        left -= group
        if len(group) > 1:
            groups.append([ids[row] for row in sorted(group)])
    return groups


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 30), count=st.integers(0, 60), noise=st.sampled_from([0.0, 0.02, 0.3]))
def test_groups_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    centres = vectors(8, seed)
    rows = centres[rng.integers(0, 8, count)] * rng.uniform(0.5, 2, (count, 1))
    rows = (rows + noise * rng.normal(size=rows.shape)).astype(np.float32)
    path = tmp_path_factory.mktemp("g") / "g"
    with pytest.MonkeyPatch.context() as patch, Gallery.create(path, dimension=8, dtype="float32") as gallery:
        patch.setattr(duplicates, "_ROWS", 7)
        patch.setattr(duplicates, "_COLUMNS", 11)
        if count:
            gallery.add_vectors(ids=names(count), vectors=rows)
        found = gallery.duplicates(0.97)
        if not count or np.abs(_cosines(rows) - 0.97).min() > 1e-4:  # none so near that rounding decides
            assert [group.ids for group in found] == expected(rows, names(count), 0.97)


def _cosines(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return rows @ rows.T


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_equal_rows_are_found_at_any_scale(tmp_path: Path, dtype: str) -> None:
    with filled(tmp_path / "g", 20, dtype=dtype) as gallery:
        rows = vectors(20)
        gallery.add_vectors(
            ids=["same", "longer", "opposite"], vectors=np.stack([rows[3], rows[3] * 4, -rows[5]])
        )
        gallery.remove(["i7"])
        groups = gallery.duplicates(1.0)
        assert [group.ids for group in groups] == [["i3", "same", "longer"]]
        assert groups[0].similarity == pytest.approx(1, abs=1e-4)


def test_removed_items_are_no_duplicates(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 5) as gallery:
        gallery.add_vectors(ids=["same"], vectors=vectors(5)[2:3])
        assert len(gallery.duplicates()) == 1
        gallery.remove(["i2"])
        assert gallery.duplicates() == []


def test_a_gallery_of_one_picture_is_one_group(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", dimension=4) as gallery:
        gallery.add_vectors(ids=names(3000), vectors=np.ones((3000, 4)))
        (group,) = gallery.duplicates()
        assert group.ids == names(3000) and group.similarity == 1


@pytest.mark.parametrize("threshold", [0, 1.01, -1, float("nan"), "0.9", None, True])
def test_thresholds_are_cosines(tmp_path: Path, threshold: object) -> None:
    with filled(tmp_path / "g", 2) as gallery, pytest.raises(UsageError, match="threshold"):
        gallery.duplicates(threshold)  # type: ignore[arg-type]
