"""`cir-bench explain`: what it counts, on maps whose answer is known, and one small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cir_bench.commands import main
from cir_bench.explaining.cases import cases_of, inside
from cir_bench.explaining.deletion import GRID, term_left
from cir_bench.explaining.methods import grad_cam, of_shares
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_eval.datasets.scenes.reader import ScenesDataset
from cir_infer import Engine
from cir_infer.scoring.contract import QueryTerms
from tests.bundles import write_explained_bundle


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    generate(
        folder,
        Plan(train_families=2, validation_queries=2, test_queries=12, gallery=60, image_size=32),
        jobs=1,
    )
    return folder


def test_cases_know_the_cell_of_what_is_new(scenes: Path) -> None:
    data = ScenesDataset.open(scenes)
    split = data.split("test")
    cases = cases_of(split, data.views[-1], 100)
    kinds = [query.kind for query in split.queries if query.kind != "remove"]
    assert [case.kind for case in cases] == kinds
    for case in cases:
        assert case.cells.shape == (3, 3) and case.cells.sum() == 1
        assert case.target.is_file() and case.reference.is_file()
    assert len(cases_of(split, data.views[-1], 2)) == 2


def test_the_pointing_game_takes_grids_of_any_size() -> None:
    cells = np.zeros((3, 3), bool)
    cells[0, 2] = True
    for side in (3, 7, 9, 14):
        heat = np.zeros((side, side))
        heat[0, -1] = 1
        assert inside(heat, cells)
        assert not inside(np.rot90(heat), cells)


def test_the_deletion_curve_falls_where_the_map_is_right(tmp_path: Path) -> None:
    """Of a linear row, painting over the largest shares first costs more than any other order."""
    with Engine(write_explained_bundle(tmp_path / "a.cir", "cosine"), device="cpu", threads=1) as engine:
        random = np.random.default_rng(3)
        numerators = random.normal(size=(1, 1, 8)).astype(np.float32)
        terms = QueryTerms(numerators, np.ones_like(numerators), ("similarity",))
        picture = random.integers(0, 256, (8, 8, 3), np.uint8)
        heat = of_shares(engine)(picture[None], terms, 0)[0]
        best, worst = (term_left(engine, picture, sign * heat, terms, 0, (0.0, 0.1, 0.3)) for sign in (1, -1))
        assert best[0] == worst[0] and (best[1:] < worst[1:]).all() and (np.diff(best) < 0).all()
        assert GRID == 9


def test_grad_cam_is_its_formula() -> None:
    from cir_export.models import build_model
    from tests.export.tiny import config

    torch.manual_seed(0)
    gem = {"trunk": "small", "pooling": "gem", "size": 24, "channels": [4, 6, 8]}
    model: Any = build_model(config(image=gem)).eval()
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 24, 24, 3), np.uint8)
    n, w = (random.random((1, 1, 24)).astype(np.float32) for _ in range(2))
    found = grad_cam(model)(pictures, QueryTerms(n, w, ("t",)), 0)
    last = model.image_encoder.trunk(model.image_encoder.normalize(torch.from_numpy(pictures))).detach()

    def term(maps: Any) -> Any:
        rows = model.image_encoder.embed(maps).detach().double()
        return (rows @ torch.from_numpy(n[0, 0]).double()) / (
            rows**2 @ torch.from_numpy(w[0, 0]).double()
        ).sqrt()

    step = 1e-2
    for image in range(2):
        weights = []
        for channel in range(8):
            # The mean gradient of a channel, by moving all of it up and down.
            moved = [last.clone() for _ in range(2)]
            for one, sign in zip(moved, (1, -1), strict=True):
                one[image, channel] += sign * step
            weights.append((term(moved[0]) - term(moved[1]))[image].item() / (2 * step) / 9)
        expected = np.maximum(np.tensordot(weights, last[image].numpy(), 1), 0)
        np.testing.assert_allclose(found[image], expected, atol=0.02 * max(expected.max(), 1e-4))


def test_wrong_usage(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_explained_bundle(tmp_path / "a.cir")
    asked = ["explain", str(scenes), "--model", "nothing.pt", "--bundle", str(bundle)]
    assert main([*asked, "--queries", "0"]) == 2
    assert main(asked) == 1
    assert "nothing.pt" in capsys.readouterr().err
