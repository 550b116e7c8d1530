"""Weights to start from: torchvision's ResNet, GloVe, BERT's word vectors, a CLIP's towers, a model file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cir_export.checkpoints import load_trained
from cir_export.model_file import load_model
from cir_export.models import RetrievalModel, build_model
from cir_export.models.encoders.resnet import ResNet
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts
from cir_export.training.initial import start_from
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import CheckpointError, TrainingError
from tests.training.test_data_sets import configuration, shoes

ENCODERS = Path(__file__).parents[1] / "golden" / "encoders"
TOKENIZER = build_tokenizer(vocabulary_from_texts(["is red", "has longer laces"]))
CONFIG: dict[str, Any] = {
    "system": "artemis",
    "embedding_dim": 16,
    "image": {"trunk": "resnet18", "size": 32},
    "text": {"encoder": "bigru", "word_dim": 4, "vocabulary_size": TOKENIZER.get_vocab_size()},
}
SMALL = {**CONFIG, "image": {"trunk": "small", "size": 24, "channels": [4, 8], "pooling": "grid"}}


def words(model: RetrievalModel) -> dict[str, list[float]]:
    weights = model.text_encoder.embed.weight  # type: ignore[union-attr]
    return {word: weights[row].tolist() for word, row in TOKENIZER.get_vocab().items()}


def test_a_resnet_of_torchvision_becomes_the_trunk(tmp_path: Path) -> None:
    torch.manual_seed(1)
    published = {
        **ResNet("resnet18").state_dict(),
        "fc.weight": torch.zeros(3, 512),
        "fc.bias": torch.zeros(3),
    }
    torch.save(published, tmp_path / "resnet18-f37072fd.pth")
    model = build_model(CONFIG)
    start = start_from(model, tmp_path / "resnet18-f37072fd.pth", TOKENIZER)
    assert (start.kind, start.licence) == ("torchvision resnet18", "not stated in the file")
    trunk = model.trunks()[0].state_dict()
    assert all(torch.equal(trunk[name], published[name]) for name in trunk)
    with pytest.raises(TrainingError, match=r"has no ResNet, set model\.image\.trunk = 'resnet18'"):
        start_from(build_model(SMALL), tmp_path / "resnet18-f37072fd.pth", TOKENIZER)


def test_glove_gives_the_words_that_it_knows(tmp_path: Path) -> None:
    file = tmp_path / "glove.txt"
    file.write_text("the 1 1 1 1\nred 0.5 -1 2 3e-1\n<start> 9 9 9 9\nlaces 1 2 3 4\n")
    model = build_model(SMALL)
    before = words(model)
    start = start_from(model, file, TOKENIZER)
    after = words(model)
    assert start.taken == "2 of 5 word vectors"
    assert after["red"] == pytest.approx([0.5, -1, 2, 0.3])
    assert after["laces"] == [1, 2, 3, 4]
    assert all(after[word] == before[word] for word in before if word not in ("red", "laces"))
    for content, words_of_error in (
        ("red 1 2 3\n", r"vectors of 3 values, the model of 4; set model\.text\.word_dim = 3"),
        ("blue 1 2 3 4\n", "knows none of the 5 words"),
        ("red 1 2 3 nan\n", "a value is not finite"),
    ):
        file.write_text(content)
        with pytest.raises((TrainingError, CheckpointError), match=words_of_error):
            start_from(build_model(SMALL), file, TOKENIZER)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    folder.mkdir()
    pieces = ["[PAD]", "[UNK]", "red", "lace", "##s", "is"]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    vectors = torch.arange(24.0).view(6, 4)
    save_file({"bert.embeddings.word_embeddings.weight": vectors}, str(folder / "model.safetensors"))
    return folder


def test_a_bert_gives_a_vector_a_word_from_its_pieces(bert: Path) -> None:
    model = build_model(SMALL)
    start = start_from(model, bert, TOKENIZER)
    found = words(model)
    assert found["red"] == [8, 9, 10, 11]
    assert found["laces"] == [14, 15, 16, 17]  # the mean of "lace" and "##s"
    assert (start.kind, start.licence) == ("Hugging Face BERT, word vectors", "apache-2.0")
    wide = {**SMALL, "text": {**SMALL["text"], "word_dim": 8}}
    with pytest.raises(TrainingError, match=r"set model\.text\.word_dim = 4"):
        start_from(build_model(wide), bert, TOKENIZER)
    (bert / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.txt"):
        start_from(model, bert, TOKENIZER)


def test_a_clip_gives_its_towers_and_a_siglip_does_not() -> None:
    published = load_trained(ENCODERS / "clip").model
    clip = {key: value for key, value in published.config["pair"].items() if key != "family"}
    model = build_model(
        {"system": "clip4cir-sum", "clip": {**clip, "vocabulary_size": TOKENIZER.get_vocab_size()}}
    )
    before = model.state_dict()["clip.token_embedding.weight"].clone()
    start = start_from(model, ENCODERS / "clip", TOKENIZER)
    found, weights = model.state_dict(), published.state_dict()
    assert start.kind == "towers of a CLIP"
    for name, weight in found.items():
        if name == "clip.token_embedding.weight":  # training reads words, and not its tokens
            assert torch.equal(weight, before)
        elif name != "logit_scale":
            assert torch.equal(weight, weights[name.replace("clip.", "pair.", 1)]), name
    with pytest.raises(TrainingError, match="siglip is no CLIP; expected the folder of a BERT or a CLIP"):
        start_from(model, ENCODERS / "siglip", TOKENIZER)


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    model = build_model(SMALL)
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"is no weights to start from; expected a model\.pt of cir-train"
    ):
        start_from(model, tmp_path / "a.pt", TOKENIZER)
    with pytest.raises(CheckpointError, match="does not exist"):
        start_from(model, tmp_path / "b.pt", TOKENIZER)


def test_a_training_says_what_it_started_from(tmp_path: Path, bert: Path) -> None:
    config = configuration(
        shoes(tmp_path / "data"),
        {"dataset": "shoes"},
        {"text": {"encoder": "bigru", "word_dim": 4}},
        epochs=1,
    )
    train(config, tmp_path / "a", "cpu", initial=[bert])
    model = TrainingFiles(tmp_path / "a").model
    train(config, tmp_path / "b", "cpu", initial=[bert, model])
    said = load_model(TrainingFiles(tmp_path / "b").model).provenance["initial"]
    assert [one["kind"] for one in said] == ["Hugging Face BERT, word vectors", "model file of cir-train"]
    assert said[0]["licence"] == "apache-2.0"
    assert len(said[1]["sha256"]) == 64
