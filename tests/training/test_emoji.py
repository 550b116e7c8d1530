"""Training on emoji: styles by epoch, parts that share pictures, and what the model says it has seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cir_eval.datasets.emoji.building import build
from cir_eval.datasets.emoji.drawing import Plan
from cir_export.model_file import load_model
from cir_export.models import build_model
from cir_export.training.configuration import DataSettings, TrainingConfig
from cir_export.training.evaluation import evaluate
from cir_export.training.loading import load_data
from cir_export.training.sources import open_source
from cir_export.training.systems import model_for_system, with_vocabulary
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import TrainingError
from tests.datasets.emoji_packages import style_of
from tests.training.test_data_sets import configuration


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = tmp_path_factory.mktemp("packages")
    styles = [style_of("noto", packages), style_of("twemoji", packages)]
    folder = tmp_path_factory.mktemp("data") / "emoji"
    build(folder, styles, Plan(train_families=8, validation_queries=10, test_queries=20), packages)
    return folder


def config_of(root: Path, **data: str) -> TrainingConfig:
    return configuration(root, {"dataset": "emoji", **data}, {}, epochs=1)


def test_an_epoch_draws_the_styles_of_whole_families(root: Path) -> None:
    split = open_source(config_of(root).data).train
    half = len(split.images) // 2
    assert split.families is not None
    drawn = []
    for draw in range(40):
        styles: dict[int, set[tuple[int, int]]] = {}
        for query, family in enumerate(split.families):
            found = split.triplet(query, draw)
            assert found == split.triplet(query, draw)
            styles.setdefault(family, set()).add((found.reference // half, found.target // half))
        assert all(len(pairs) == 1 for pairs in styles.values())
        drawn += [pair for pairs in styles.values() for pair in pairs]
    assert set(drawn) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    same = sum(reference == target for reference, target in drawn) / len(drawn)
    assert 0.4 < same < 0.6


def test_a_view_is_one_style_and_an_unknown_one_is_named(root: Path) -> None:
    alone = open_source(config_of(root, view="twemoji").data)
    assert alone.test is not None and [part.name for part in alone.test.parts] == ["twemoji"]
    across = open_source(config_of(root, view="twemoji", reference_view="noto").data)
    assert across.test is not None and [part.name for part in across.test.parts] == ["noto to twemoji"]
    half = len(across.train.images) // 2
    found = [across.train.triplet(query, 0) for query in range(len(across.train))]
    assert {(one.reference // half, one.target // half) for one in found} == {(0, 1)}
    with pytest.raises(TrainingError, match=r"has the styles noto, twemoji, not 'openmoji'"):
        open_source(DataSettings(str(root), "emoji", view="openmoji"))


@pytest.mark.parametrize("system", ["artemis", "sac", "text-only"])
def test_galleries_that_parts_share_give_what_each_part_gives_alone(root: Path, system: str) -> None:
    """ARTEMIS reads a reference as a gallery row, SAC with another head, text only not at all."""
    config = config_of(root)
    config = replace(config, model=model_for_system(config.model, system))
    data = load_data(config)
    assert data.test is not None
    by_name = {part.part.name: part for part in data.test.parts}
    assert by_name["noto to twemoji"].references is by_name["noto"].images
    torch.manual_seed(0)
    model = build_model(with_vocabulary(config.model, data.tokenizer.get_vocab_size()))
    together = evaluate(model, data.test, data.train.tokens, torch.device("cpu"))
    for part in data.test.parts:
        alone = evaluate(model, replace(data.test, parts=(part,)), data.train.tokens, torch.device("cpu"))
        assert together["parts"][part.part.name] == {f"R@{k}": share for k, share in alone["recall"].items()}


def test_a_model_says_whose_pictures_it_has_seen(root: Path, tmp_path: Path) -> None:
    end = train(config_of(root), tmp_path, "cpu")
    assert end["test"]["protocol"] == "emoji/styles"
    assert set(end["test"]["parts"]) == {"noto", "twemoji", "noto to twemoji", "twemoji to noto"}
    provenance = load_model(TrainingFiles(tmp_path).model).provenance
    assert provenance["data_licence"] == "pictures: noto Apache-2.0, twemoji CC-BY-4.0"
    assert "view" not in provenance
