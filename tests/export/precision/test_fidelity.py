"""What passes for the same embedding in another precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cir_export.precision import PrecisionError, samples_for
from cir_export.precision.blame import LayerError
from cir_export.precision.fidelity import Fidelity, cosines, measure_fidelity, see
from cir_export.precision.gate import objections
from cir_infer import Engine
from cir_infer.bundle import Bundle, write_bundle
from tests.bundles import manifest_of, members_of


@pytest.mark.parametrize(("a", "b", "cosine"), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (1, -1, -1)])
def test_an_embedding_that_became_zero_is_like_none(a: float, b: float, cosine: float) -> None:
    """It passed for the same: nothing was asked of a layer whose ranges left nothing."""
    left, right = (np.full((2, 3), value, np.float64) for value in (a, b))
    np.testing.assert_allclose(cosines(left, right), cosine)


def test_another_length_is_no_rounding(tmp_path: Path) -> None:
    """Scores without weights are as large as a row is long, and a cosine does not see it."""
    rows = np.random.default_rng(0).normal(size=(4, 6))
    assert cosines(rows, 1.001 * rows).min() > 0.999999
    np.testing.assert_allclose(cosines(rows, 1.2 * rows), 0.98)
    turned = (
        rows[:, ::-1] * np.linalg.norm(rows, axis=1)[:, None] / np.linalg.norm(rows[:, ::-1], axis=1)[:, None]
    )
    angles = (rows * turned).sum(1) / np.linalg.norm(rows, axis=1) ** 2
    np.testing.assert_allclose(cosines(rows, turned), angles)

    write_bundle(tmp_path / "plain.cir", manifest_of("cosine"), members_of("cosine"))
    samples = samples_for(Bundle(tmp_path / "plain.cir"), None, None)
    before = see(Engine(tmp_path / "plain.cir", device="cpu", threads=1), samples)
    fidelity = measure_fidelity(before, replace(before, rows=0.8 * before.rows), samples)
    assert fidelity.top10_agreement == 1.0
    (refused,) = objections("int8", fidelity, None, 0.5)
    assert refused == "the worst cosine of an image's embedding is 0.98000 and 0.995 is asked"


def test_an_embedding_turned_round_is_no_overflow() -> None:
    """It was called one, and kept in float32 with all that overflow."""
    fidelity = Fidelity(8, 8, "images", 0.9, 0.5)
    layers = [LayerError("image", "m.first", -0.2), LayerError("image", "m.second", 0.99)]
    refused = PrecisionError("int8", ["the worst cosine is 0.5"], fidelity, None, layers)
    assert "overflows" not in str(refused) and "m.first (cosine -0.20000)" in str(refused)
