"""The alternatives that ours is compared with really do the same; what does not is refused, not timed."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import torch

from cir_bench.commands import main
from cir_bench.compare import measurement
from cir_bench.compare.alternatives import Alternative
from cir_bench.compare.lowered import passing
from cir_bench.report.page import report_page
from cir_bench.report.text import table7_text
from cir_bench.seeded_models import seeded_model
from cir_bench.table7.paper import GALLERIES, PAPER, QUERIES
from cir_bench.table7.workload import fashioniq_shaped, real_fashioniq
from cir_bench.torch_scoring import literal_scores, ranked, two_product_scores
from cir_export.model_file import TrainedModel, load_model, save_model
from cir_export.models import build_model
from cir_export.preprocessing import plain_resize, word_text
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts
from cir_export.training.systems import model_for_system
from cir_infer.errors import DatasetError, UsageError
from cir_infer.extras import is_installed
from cir_infer.scoring.contract import QueryTerms, Rows
from cir_infer.scoring.reference import ReferenceScorer


def written(folder: Path, system: str) -> Path:
    """A tiny model with random weights."""
    vocabulary = vocabulary_from_texts(["is red and larger", "the blue cone is gone", "move it to the left"])
    torch.manual_seed(0)
    config = {
        "system": "artemis",
        "embedding_dim": 24,
        "image": {"trunk": "small", "pooling": "grid", "size": 24, "channels": [4, 6, 8]},
        "text": {"encoder": "bigru", "vocabulary_size": len(vocabulary), "word_dim": 10},
    }
    model = build_model(model_for_system(config, system)).eval()
    path = folder / "model.pt"
    save_model(path, TrainedModel(model, build_tokenizer(vocabulary), plain_resize(24), word_text()))
    return path


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    """ARTEMIS."""
    return written(tmp_path_factory.mktemp("model"), "artemis")


@pytest.mark.parametrize("weighted", [True, False])
def test_both_ways_of_pytorch_are_the_definition(weighted: bool):
    random = np.random.default_rng(0)
    rows = random.normal(size=(200, 32)).astype(np.float32)
    numerators = random.normal(size=(3, 2, 32)).astype(np.float32)
    weights = random.uniform(0.1, 1, size=(3, 2, 32)).astype(np.float32) if weighted else None
    wanted = ReferenceScorer(Rows.of(rows)).topk(QueryTerms(numerators, weights, ("a", "b")), 20)
    t = torch.from_numpy(rows)
    n = torch.from_numpy(numerators)
    w = None if weights is None else torch.from_numpy(weights)
    products = two_product_scores(n, w, t, t * t)
    for query in range(3):
        literal = literal_scores(n[query], None if w is None else w[query], t)
        torch.testing.assert_close(literal, products[query], atol=2e-5, rtol=1e-4)
        assert ranked(literal, 20).tolist() == wanted.rows[query].tolist()
        np.testing.assert_allclose(literal.sort(descending=True).values[:20], wanted.scores[query], atol=1e-5)


def test_compare_verifies_times_and_relates(model_file: Path, capsys, caplog, exported_once):
    quick = ["--rows", "300", "--k", "10", "--seconds", "0.1", "--rounds", "6", "--no-compile", "--json"]
    with exported_once():
        assert main(["compare", str(model_file), *quick]) == 0
    assert "vocabulary" not in caplog.text  # the texts are of its own making
    result = json.loads(capsys.readouterr().out)
    assert "8 queries" in result["verified"]
    for ways in result["comparisons"].values():
        lower = {"PyTorch bfloat16 autocast", "ONNX Runtime int8", "cir-infer int8, cpu"}
        if is_installed("openvino"):
            lower.add("cir-infer int8, openvino")
            # Only where the processor computes it.
            lower |= {"cir-infer bfloat16, openvino"} & (set(ways) | set(result["left_out"]))
        assert lower - set(ways) == set(result["left_out"])
        assert len(ways) == 4 + is_installed("openvino") + len(lower & set(ways))
        assert ways[result["ours"]]["times_ours"]["median"] == 1.0
        for found in ways.values():
            assert found["samples"] >= 6
            assert (
                0 < found["times_ours"]["p10"] <= found["times_ours"]["median"] <= found["times_ours"]["p90"]
            )
    assert "literal loop" in report_page([result])


def test_a_lower_precision_is_timed_where_it_passes_the_gate_and_named_where_not():
    def way(noise: float, precision: str) -> Alternative:
        row = np.array([1.0, noise])
        return Alternative(f"{precision} {noise}", lambda _: np.arange(1), lambda _: row, None, precision)

    rivals = [way(0.01, "bfloat16"), way(0.08, "bfloat16"), way(0.08, "int8"), way(0.2, "int8")]
    kept, left_out = passing(way(0.0, "float32"), rivals, [None])
    assert [rival.name for rival in kept] == ["bfloat16 0.01", "int8 0.08"]
    assert "0.999 is asked" in left_out["bfloat16 0.08"] and "0.995 is asked" in left_out["int8 0.2"]


def test_a_lower_precision_of_another_length_or_without_numbers_is_not_timed():
    """As the gate counts it; a NaN in any embedding but the first passed."""

    def way(name: str, rows: list[list[float]]) -> Alternative:
        given = cycle(rows)
        return Alternative(name, lambda _: np.arange(1), lambda _: np.array(next(given)), None, "int8")

    rivals = [
        way("near", [[1, 0], [1, 0.01]]),
        way("longer", [[1, 0], [1.3, 0]]),
        way("none", [[1, 0], [np.nan, 0]]),
    ]
    kept, left_out = passing(way("ours", [[1, 0], [1, 0]]), rivals, [None] * 2)
    assert [rival.name for rival in kept] == ["near"]
    assert set(left_out) == {"longer", "none"}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch.compile's own imports
def test_rows_of_several_vectors_are_not_compared_as_one(model_file: Path) -> None:
    trained = load_model(model_file)
    trained.model.tokens_per_item = 3
    with pytest.raises(UsageError, match=r"a row of 'artemis' is 3 vectors.*cir-bench scoring --tokens 3"):
        measurement.measure_comparison(trained, measurement.Settings())


def test_an_alternative_that_ranks_otherwise_is_not_timed(
    model_file: Path, monkeypatch, capsys, exported_once
):
    real = measurement.alternatives

    def one_wrong(*arguments):
        ways = real(*arguments)
        wrong = ways[1]
        return [ways[0], type(wrong)("broken", lambda q: wrong.answer(q)[::-1].copy(), wrong.encode)]

    monkeypatch.setattr(measurement, "alternatives", one_wrong)
    with exported_once():
        assert main(["compare", str(model_file), "--rows", "300", "--k", "10", "--seconds", "0.1"]) == 1
    captured = capsys.readouterr()
    assert "broken does not rank as the definition does" in captured.err
    assert captured.out == ""


def test_a_system_that_sees_references_with_an_encoder_of_its_own_is_compared_too(tmp_path: Path, capsys):
    """The definition was given the gallery's row in its place, which PyTorch did not rank by."""
    model = written(tmp_path, "film")
    assert not load_model(model).model.reference_is_gallery_row
    command = [
        "compare",
        str(model),
        "--rows",
        "60",
        "--k",
        "5",
        "--seconds",
        "0.05",
        "--rounds",
        "3",
        "--no-compile",
        "--json",
    ]
    assert main(command) == 0
    assert len(json.loads(capsys.readouterr().out)["comparisons"]["image encoder"]) >= 4


def test_the_replayed_split_has_fashioniq_s_shape():
    categories = fashioniq_shaped()
    assert {c.name: len(c.images) for c in categories} == GALLERIES
    assert {c.name: len(c.texts) for c in categories} == QUERIES
    assert all(0 <= min(c.references) <= max(c.references) < len(c.images) for c in categories)
    tokens = [3 + len(first.split()) + len(second.split()) for c in categories for first, second in c.texts]
    assert 5 <= min(tokens) <= max(tokens) <= 27
    assert np.mean(tokens) == pytest.approx(13.7, abs=0.7)
    with pytest.raises(DatasetError):
        real_fashioniq(Path("/no/such/data"))


def test_the_table_prints_ours_beside_the_paper_s():
    timed = {"seconds": 2.0, "measured": 10, "of": 100, "scaled": True}
    result = {
        "kind": "table7",
        "machine": {"name": "A machine", "cpu": {"cores": 2}},
        "commit": "aaaaaaa",
        "settings": {
            "data": "generated",
            "device": "cpu",
            "threads": 2,
            "galleries": GALLERIES,
            "queries": QUERIES,
        },
        "encoders": {
            "giga_macs": 8.29,
            "mega_parameters": 31.6,
            "images": timed,
            "texts": timed,
            "seconds": 100.0,
        },
        "systems": {
            "artemis": {
                "giga_macs": 0.001,
                "mega_parameters": 1.31,
                "scorer": "cpu",
                "authors": {**timed, "seconds": 50.0},
                "ours": {**timed, "seconds": 0.5},
                "authors_over_ours": 100.0,
                "same_first": 1.0,
            }
        },
        "paper": {name: row._asdict() for name, row in PAPER.items()},
        "doubts": ["scaled"],
    }
    text = table7_text(result)
    assert "+8.78 s" in text
    assert "114.09 s" in text
    assert "150" in text
    assert "takes 100 times ours" in text
    assert "+8.78" in report_page([result])


def test_a_seeded_model_has_the_paper_s_size():
    model = seeded_model().model
    encoders = [model.image_encoder, model.text_encoder]
    counted = sum(p.numel() for module in encoders for p in module.parameters()) / 1e6
    everything = sum(p.numel() for p in model.parameters()) / 1e6
    assert counted == pytest.approx(PAPER["encoders"].mega_parameters, abs=0.02)
    assert everything - counted == pytest.approx(PAPER["artemis"].mega_parameters, abs=0.01)
