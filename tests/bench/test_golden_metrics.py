"""The authors' own figures, exactly: their code's rankings of generated data, judged by our protocols."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cir_bench.commands import main
from cir_eval.metrics import judge, measure_of, metrics_of, ranking_of
from cir_eval.protocols import protocol

GOLDEN = Path(__file__).parents[1] / "golden"


def official(message: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(?:Metric )?(.+?): ([\d.]+)$", message, re.M)}


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in metrics.items() if name.startswith("R")}


@pytest.fixture(scope="module")
def fashioniq(tmp_path_factory) -> Path:
    """The annotations with an (unread) file for every image."""
    root = tmp_path_factory.mktemp("fashioniq")
    shutil.copytree(GOLDEN / "data/fashionIQ", root, dirs_exist_ok=True)
    (root / "img").mkdir()
    for split in (root / "annotations/image_splits").iterdir():
        for name in json.loads(split.read_text()):
            (root / "img" / f"{name}.jpg").touch()
    return root


@pytest.mark.parametrize("case", ["cirr_feat_bigru_small", "cirr_feat_lstm_small"])
def test_cirr_after_artemis(case: str):
    golden = np.load(GOLDEN / "artemis" / case / "golden.npz")
    plan = protocol("cirr/artemis")
    (part,) = plan.load(GOLDEN / "data/cirr", "val")
    assert list(part.ids) == golden["gallery_names"].tolist()
    assert [query.reference for query in part.queries] == golden["ref_index"].tolist()
    np.testing.assert_array_equal(np.stack(part.images), golden["gallery_features"])
    rankings = golden["top50/val"].astype(np.int64)
    metrics = metrics_of(
        [judge(plan, q, ranking_of(plan, q, r)) for q, r in zip(part.queries, rankings, strict=True)]
    )
    wanted = official((GOLDEN / "artemis" / case / "official_eval_message.txt").read_text())
    assert rounded(metrics) == {
        name: value for name, value in wanted.items() if re.fullmatch(r"R\w*@\d+", name)
    }
    assert round(measure_of(plan, [metrics]), 2) == wanted["Validation measure"]


def test_fashioniq_after_artemis(fashioniq: Path):
    golden = np.load(GOLDEN / "artemis/fashioniq_dress.npz")
    plan = protocol("fashioniq/artemis")
    part = plan.load(fashioniq, "val")[0]
    assert list(part.ids) == golden["gallery_names"].tolist()
    assert [query.reference for query in part.queries] == golden["ref_index"].tolist()
    outcomes = [
        judge(plan, q, ranking_of(plan, q, np.argsort(-s, kind="stable")))
        for q, s in zip(part.queries, golden["scores"], strict=True)
    ]
    assert [o.rank for o in outcomes] == (golden["rank_of_gt"] + 1).tolist()
    metrics = metrics_of(outcomes)
    assert rounded(metrics) == {"R@10": 66.67, "R@50": 100.0}
    assert (metrics["median_rank"], round(metrics["mean_rank"], 2)) == (10.0, 9.33)


def test_fashioniq_after_clip4cir(fashioniq: Path):
    golden = np.load(GOLDEN / "clip4cir/fashioniq_dress.npz")
    plan = protocol("fashioniq/clip4cir")
    part = plan.load(fashioniq, "val")[0]
    assert list(part.ids) == golden["names"].tolist()
    metrics = metrics_of(
        [
            judge(plan, q, ranking_of(plan, q, np.argsort(d, kind="stable")))
            for q, d in zip(part.queries, golden["distances"], strict=True)
        ]
    )
    assert rounded(metrics) == {"R@10": 22.22, "R@50": 100.0}


def test_fashion200k_after_tirg():
    golden = np.load(GOLDEN / "tirg/rankings.npz")
    plan = protocol("fashion200k/tirg")
    (part,) = plan.load(GOLDEN / "data/fashion200k", "test")
    assert [query.texts[0] for query in part.queries] == golden["mods"].tolist()
    assert list(part.ids) == golden["gallery_files"].tolist()
    metrics = metrics_of(
        [
            judge(plan, q, ranking_of(plan, q, np.argsort(-c, kind="stable")))
            for q, c in zip(part.queries, golden["cos"], strict=True)
        ]
    )
    assert rounded(metrics) == {"R@1": 0.0, "R@5": 23.08, "R@10": 38.46, "R@50": 100.0, "R@100": 100.0}


def test_the_other_repositories_ask_fashioniq_in_their_own_ways(fashioniq: Path):
    parts = {
        name: protocol(f"fashioniq/{name}").load(fashioniq, "val") for name in ("cosmo", "val", "composeae")
    }
    pair = json.loads((fashioniq / "annotations/captions/cap.dress.val.json").read_text())[0]["captions"]
    asked = [query.texts for query in parts["cosmo"][0].queries[:2]]
    assert asked == [(f"{pair[0]} and {pair[1]}",), (f"{pair[1]} and {pair[0]}",)]
    assert len(parts["cosmo"][0].queries) == len(parts["val"][0].queries) == 18
    assert all(len(query.texts) == 1 for query in parts["val"][0].queries)
    assert len(parts["val"][0].ids) <= 20
    (pooled,) = parts["composeae"]
    assert pooled.queries[0].texts == (f"dress {pair[0]} and it {pair[1]}".lower(),)
    assert len(pooled.ids) > 20


@pytest.fixture(scope="module")
def cirr_bundle(tmp_path_factory, exported_once) -> Path:
    """The authors' checkpoint on pre-extracted features, exported."""
    from cir_export.checkpoints import load_trained
    from cir_export.export import export_bundle
    from cir_export.verification import draw_samples

    case = GOLDEN / "artemis/cirr_feat_bigru_small"
    trained = load_trained(case / "ckpt.pth", case / "cirr_vocab.pkl")
    path = tmp_path_factory.mktemp("cirr") / "artemis.cir"
    with exported_once():
        export_bundle(trained, path, draw_samples(trained.image, trained.text, trained.tokenizer))
    return path


def test_a_checkpoint_of_the_authors_reaches_their_figures_through_the_runtime(cirr_bundle: Path, capsys):
    arguments = [str(cirr_bundle), str(GOLDEN / "data/cirr"), "--protocol", "cirr/artemis", "--json"]
    assert main(["accuracy", *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    wanted = official((GOLDEN / "artemis/cirr_feat_bigru_small/official_eval_message.txt").read_text())
    found = rounded(result["parts"][0]["metrics"])
    assert found == {name: value for name, value in wanted.items() if re.fullmatch(r"R\w*@\d+", name)}
    assert round(result["measure"]["value"], 2) == wanted["Validation measure"]


def test_its_files_for_the_test_server_are_theirs(cirr_bundle: Path, tmp_path: Path, capsys):
    arguments = [
        str(cirr_bundle),
        str(GOLDEN / "data/cirr"),
        "--protocol",
        "cirr/artemis",
        "--split",
        "test1",
    ]
    assert main(["accuracy", *arguments, "--submission", str(tmp_path / "upload")]) == 0
    assert "no answers are published" in capsys.readouterr().out
    theirs = GOLDEN / "artemis/cirr_feat_bigru_small/test1_submission"
    for name in ("recall", "recall_subset"):
        ours = json.loads((tmp_path / "upload" / f"{name}.json").read_text())
        assert ours == json.loads((theirs / f"cirr_{name}.json").read_text())
