"""TIRG: google/tirg's checkpoints and ARTEMIS' own version, against their authors' answers."""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cir_export.checkpoints import load_trained
from cir_export.checkpoints.tirg import load_tirg, vocabulary_of_texts
from cir_export.model_file import TrainedModel
from cir_export.models import build_model
from cir_infer.errors import CheckpointError
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.reference import ReferenceScorer
from tests.export.conftest import Case
from tests.export.systems.shared import (
    assert_same_ranking,
    composes_in_parts,
    exported,
    scores,
    seeded_checkpoint,
    shared,
)

TEXTS = ["replace blue with red", "Replace red, with white!", "a sheer caf\u00e9 t-shirt"]


def test_artemis_tirg_gives_the_authors_answers(golden: Callable[..., Case]) -> None:
    case = golden("cirr_feat_tirg_small", "TIRG")
    rows = case.engine.encode_images(list(case.answers["gallery_features"]))
    np.testing.assert_allclose(rows, case.answers["gallery_emb"], atol=1e-5, rtol=0)
    text = case.engine.encode_texts(case.captions)
    np.testing.assert_allclose(text, case.answers["txt_emb_single"], atol=1e-5, rtol=0)
    terms = case.engine.compose(rows[case.answers["ref_index"]], text)
    assert terms.weights is None  # l2(q) . t, with rows as they are
    assert not composes_in_parts(case.engine)  # it reads both side by side
    np.testing.assert_allclose(scores(terms, rows)[:5], case.answers["scores/TIRG"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(terms.numerators[:5, 0], case.answers["composed"], atol=1e-5, rtol=0)
    top = ReferenceScorer(Rows.of(rows)).topk(terms, 51).rows
    for query, (found, expected) in enumerate(zip(top, case.answers["top50/val"], strict=True)):
        assert found[found != case.answers["ref_index"][query]][:50].tolist() == expected.tolist()


def test_google_tirg_gives_the_authors_answers(tmp_path: Path) -> None:
    case = shared("tirg", "tirg")
    trained = load_trained(seeded_checkpoint(case, tmp_path / "tirg.pth"), case / "vocab.json")
    engine = exported(trained, tmp_path / "tirg.cir")
    with np.load(case / "golden.npz") as answers:
        encoded = json.loads((case / "vocab.json").read_text())["encoded"]
        for text, ids in encoded.items():
            assert trained.tokenizer.encode(text).ids == ids
        rows = engine.encode_images(
            [shared("data", "fashion200k", name) for name in answers["gallery_files"]]
        )
        np.testing.assert_allclose(rows, answers["gallery_feat"], atol=1e-5, rtol=1e-6)
        text = engine.encode_texts([str(mod) for mod in answers["mods"]])
        np.testing.assert_allclose(text, answers["text_feat"], atol=1e-5, rtol=0)
        # A stored row is the reference: no image is encoded for the query.
        assert engine.row_is_reference
        found = scores(engine.compose(rows[answers["source_idx"]], text), rows)
        np.testing.assert_allclose(found, answers["cos"], atol=1e-4, rtol=0)
        assert_same_ranking(found, answers["cos"])


@cache
def _weights(system: str) -> dict[str, torch.Tensor]:
    """Random weights under the authors' names."""
    torch.manual_seed(5)
    image = {"trunk": "resnet18", "pooling": "mean", "size": 224, "normalize": False}
    words = {"vocabulary_size": 9, "encoder": "lstm-last", "word_dim": 512, "hidden": 512, "normalize": False}
    model = build_model({"system": system, "image": image, "text": words})
    weights = {"normalization_layer.norm_s": torch.tensor([4.0])}
    for key, value in model.state_dict().items():
        if value.is_floating_point() and "running_var" not in key:
            value = value + 0.05 * torch.randn(value.shape)
        for ours, theirs in _prefixes(system):
            if key.startswith(ours):
                weights[theirs + key.removeprefix(ours)] = value
                break
    if system == "tirg-last-convolution":
        weights["a"] = torch.tensor([0.8, 3.0, 1.0, 1.0])
    return weights


def _content(system: str, name: str, **options: Any) -> dict[str, Any]:
    """A checkpoint in the authors' container."""
    options = {"model": name, "dataset": "fashion200k", "embed_dim": 512} | options
    return {"it": 7, "opt": argparse.Namespace(**options), "model_state_dict": dict(_weights(system))}


def _load(vocabulary: Path | None, name: str = "concat", **more: Any) -> TrainedModel:
    return load_tirg(_content("concatenation", name), "c.pth", vocabulary, **more)


def _prefixes(system: str) -> list[tuple[str, str]]:
    maps = [("gate.", "mod2d_gate."), ("residual.", "mod2d.")]
    return [
        ("image_encoder.project.", "img_model.fc.0."),
        ("image_encoder.trunk.", "img_model."),
        ("text_encoder.embed.", "text_model.embedding_layer."),
        ("text_encoder.rnn.layer.", "text_model.lstm."),
        ("text_encoder.project.", "text_model.fc_output.1."),
        ("mlp.", "composer.m."),
        *(maps if system == "tirg-last-convolution" else []),
    ]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    words = ["<UNK>", "blue", "red", "white", "with", "sheer", "a", "tshirt", "caf"]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"word2id": {word: index for index, word in enumerate(words)}}))
    return path


@torch.no_grad()
@pytest.mark.parametrize(
    ("system", "name", "legacy"),
    [
        ("tirg-last-convolution", "tirg_lastconv", False),
        ("concatenation", "concat", True),
        ("tirg-image-only", "imgonly", False),
        ("tirg-text-only", "textonly", False),
    ],
)
def test_the_other_models_are_their_formulas(
    tmp_path: Path, vocabulary: Path, system: str, name: str, legacy: bool
) -> None:
    content, weights = _content(system, name), _weights(system)
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=not legacy)
    trained = load_trained(tmp_path / "c.pth", vocabulary)
    model = trained.model
    assert model.system == system
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    tokens, lengths = torch.tensor([[1, 4, 2], [3, 0, 0]]), torch.tensor([3, 1])
    encoder = model.image_encoder
    last_map = encoder.trunk(encoder.normalize(images))

    def linear(x: torch.Tensor, key: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        w = {part: weights[f"{key}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")}
        return functional.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"])

    image = linear(last_map.mean((2, 3)), "img_model.fc.0")
    text = model.encode_text(tokens, lengths)
    if name == "concat":
        x = norm(torch.cat([image, text], 1), "composer.m.0").relu()
        q = linear(norm(linear(x, "composer.m.2"), "composer.m.3").relu(), "composer.m.6")
    elif name == "tirg_lastconv":
        both = torch.cat([last_map, text[:, :, None, None].repeat(1, 1, 7, 7)], 1)
        branches = []
        for key in ("mod2d_gate", "mod2d"):
            x = norm(both, f"{key}.0")
            x = functional.conv2d(x, weights[f"{key}.1.weight"], weights[f"{key}.1.bias"], padding=1).relu()
            x = functional.conv2d(x, weights[f"{key}.3.weight"], weights[f"{key}.3.bias"], padding=1)
            branches.append(x)
        mixed = torch.sigmoid(branches[0]) * last_map * 0.8 + branches[1] * 3.0
        q = linear(mixed.mean((2, 3)), "img_model.fc.0")
    else:
        q = image if name == "imgonly" else text
    expected = functional.cosine_similarity(q[:, None], image[None], dim=2)
    torch.testing.assert_close(model(images, tokens, lengths, images), expected, atol=2e-6, rtol=1e-5)


def test_texts_are_cleaned_as_by_the_authors() -> None:
    vocabulary = vocabulary_of_texts(TEXTS, "sorted")
    assert list(vocabulary) == [
        "<UNK>",
        "a",
        "blue",
        "caf",
        "red",
        "replace",
        "sheer",
        "tshirt",
        "white",
        "with",
    ]
    occurrence = vocabulary_of_texts(TEXTS, "first-occurrence")
    assert list(occurrence)[:5] == ["<UNK>", "replace", "blue", "with", "red"]


def test_without_a_vocabulary_the_trap_is_explained() -> None:
    with pytest.raises(CheckpointError, match=r"word2id .* JSON"):
        _load(None)


def test_training_texts_are_taken_only_where_their_order_is_certain(tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("blue red\nwhite with\nsheer a tshirt caf\n")
    with pytest.raises(CheckpointError, match="ambiguous"):
        _load(texts)
    texts.write_text("a b c\nd e f\ng h\n")
    assert _load(texts).tokenizer.encode("h, B!").ids == [8, 2]
    texts.write_text("a b c\n")
    with pytest.raises(CheckpointError, match=r"has 4 words and .* has word vectors for 9"):
        _load(texts)


def test_a_vocabulary_is_read_from_a_pickled_simple_vocab(tmp_path: Path, vocabulary: Path) -> None:
    module = types.ModuleType("text_model")
    module.SimpleVocab = type("SimpleVocab", (), {"__module__": "text_model"})  # type: ignore[attr-defined]
    instance = module.SimpleVocab()
    instance.word2id = json.loads(vocabulary.read_text())["word2id"]
    instance.wordcount = {}
    sys.modules["text_model"] = module
    try:
        (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(instance))
    finally:
        del sys.modules["text_model"]
    loaded = _load(tmp_path / "vocab.pkl")
    assert loaded.tokenizer.encode("sheer RED").ids == [5, 2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["<UNK>", "a"], "has 2 words"),
        (["a", "<UNK>", *"bcdefgh"], "<UNK> has id 1; expected 0"),
        (["x", *"abcdefgh"], "<UNK> has id None"),
    ],
)
def test_a_vocabulary_that_is_not_its_own_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "v.json").write_text(json.dumps(words))
    with pytest.raises(CheckpointError, match=said):
        _load(tmp_path / "v.json")


def test_options_and_weights_must_agree(vocabulary: Path) -> None:
    with pytest.raises(CheckpointError, match=r"opt\.model is 'tirg' but its weights are those of 'concat'"):
        _load(vocabulary, "tirg")
    with pytest.raises(CheckpointError, match="model 'film' is not known"):
        load_tirg(_content("tirg-image-only", "film"), "c.pth", vocabulary)


def test_a_model_of_css_needs_the_size_of_its_images(vocabulary: Path) -> None:
    content = _content("tirg-image-only", "imgonly", dataset="css3d")
    with pytest.raises(CheckpointError, match="--image-size"):
        load_tirg(content, "c.pth", vocabulary)
    image = load_tirg(content, "c.pth", vocabulary, image_size=(96, 128)).image
    assert (image["height"], image["width"], image["steps"]) == (96, 128, [{"op": "to_rgb"}])
    with pytest.raises(CheckpointError, match="sees images of 224 x 224"):
        _load(vocabulary, image_size=(96, 128))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"composer.m.2.weight": torch.zeros(3, 3)}, r"mlp\.2\.weight has shape \(3, 3\)"),
        ({"composer.m.2.weight": None}, r"mlp\.2\.weight is missing"),
        ({"stray": torch.zeros(1)}, "stray does not belong"),
        ({"composer.m.2.bias": torch.full((1024,), torch.nan)}, "NaN"),
        ({"img_model.layer1.0.conv1.weight": torch.zeros(1)}, "not a ResNet"),
        ({"text_model.lstm.weight_hh_l0": torch.zeros(4)}, "missing or not a matrix"),
        ({"img_model.fc.0.bias": "text"}, "not a table of tensors"),
    ],
)
def test_parts_that_do_not_fit_are_named(vocabulary: Path, change: dict[str, Any], said: str) -> None:
    content = _content("concatenation", "concat")
    changed = content["model_state_dict"] | change
    content["model_state_dict"] = {name: value for name, value in changed.items() if value is not None}
    with pytest.raises(CheckpointError, match=said):
        load_tirg(content, "c.pth", vocabulary)
