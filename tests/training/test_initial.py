"""Weights to start from: torchvision's ResNet, GloVe, BERT's word vectors, a CLIP's towers, a model file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cir_export.checkpoints import load_trained
from cir_export.model_file import TrainedModel, load_model, save_model
from cir_export.models import RetrievalModel, build_model
from cir_export.models.encoders.resnet import ResNet
from cir_export.preprocessing import plain_resize, word_text
from cir_export.tokenization import build_tokenizer, vocabulary_from_texts
from cir_export.training.data import TextTokens
from cir_export.training.initial import start_from
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import CheckpointError, CirError, TrainingError, UsageError
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
    # As the file of 840 billion tokens has them.
    file.write_text(
        "the 1 1 1 1\n. . . 1 1 1 1\nis name@domain.com 5 5 5 5\nred\u2028 8 8 8 8\nred 2 2 2 2\n"
    )
    assert start_from(model, file, TOKENIZER).taken == "1 of 5 word vectors"
    assert words(model)["red"] == [2, 2, 2, 2] and words(model)["is"] == before["is"]
    for content, words_of_error in (
        ("red 1 2 3\n", r"vectors of 3 values, the model of 4; set model\.text\.word_dim = 3"),
        ("blue 1 2 3 4\n", "knows none of the 5 words"),
        ("red 1 2 3 nan\n", "a value is not finite"),
        ("the 1 1 1 1\nred 1 2 3 4 5\n", "knows none of the 5 words"),
        ("the 1 1 1 1\nred 1 2 3\n", r"red.*: 3 values; expected 4, as in the first line"),
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
    adapter = bert / "adapter_config.json"
    adapter.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased"}))
    with pytest.raises(CheckpointError, match=r"holds an adapter .*bert-base-uncased"):
        start_from(model, bert, TOKENIZER)  # which changes the words that would be taken
    adapter.unlink()
    (bert / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.txt"):
        start_from(model, bert, TOKENIZER)


def test_a_clip_is_trained_with_its_own_tokenizer_and_a_siglip_is_none(tmp_path: Path) -> None:
    published = load_trained(ENCODERS / "clip")
    config = configuration(shoes(tmp_path / "data"), {"dataset": "shoes"}, {}, epochs=1, frozen_epochs=1)
    config = replace(config, model={"system": "clip4cir-combiner", "clip": {}})
    train(config, tmp_path / "a", "cpu", initial=[ENCODERS / "clip"])
    found = load_model(TrainingFiles(tmp_path / "a").model)
    assert found.tokenizer.to_str() == published.tokenizer.to_str()
    assert found.text == {**published.text, "captions": "and:clip4cir"}
    assert found.provenance["vocabulary"]["kind"] == "subwords"
    weights = published.model.pair.state_dict()  # type: ignore[operator, union-attr]
    assert all(torch.equal(weight, weights[name]) for name, weight in found.model.clip.state_dict().items())  # type: ignore[operator, union-attr]
    (start,) = found.provenance["initial"]
    assert (start["kind"], start["licence"]) == ("CLIP", "mit")
    # A second training starts from its file, with another head, and reads texts as the first did.
    head = replace(config, model={"system": "clip-artemis", "clip": {}})
    train(head, tmp_path / "b", "cpu", initial=[TrainingFiles(tmp_path / "a").model])
    second = load_model(TrainingFiles(tmp_path / "b").model)
    assert second.tokenizer.to_str() == found.tokenizer.to_str()
    assert all(torch.equal(weight, weights[name]) for name, weight in second.model.clip.state_dict().items())  # type: ignore[operator, union-attr]
    wrong = replace(config, model={**config.model, "clip": {"embed_dim": 32}})
    with pytest.raises(
        TrainingError, match=r"model\.clip\.embed_dim: 32, but .*clip has 24; leave the table"
    ):
        train(wrong, tmp_path / "c", "cpu", initial=[ENCODERS / "clip"])
    with pytest.raises(TrainingError, match="siglip is no CLIP; expected the folder of a BERT or a CLIP"):
        train(config, tmp_path / "c", "cpu", initial=[ENCODERS / "siglip"])


@pytest.mark.parametrize("system", ["pair-artemis", "combiner"])
def test_a_head_is_trained_over_a_siglip_which_reads_its_padding(tmp_path: Path, system: str) -> None:
    published = load_trained(ENCODERS / "siglip")
    config = configuration(shoes(tmp_path / "data"), {"dataset": "shoes"}, {}, epochs=2, frozen_epochs=2)
    config = replace(config, model={"system": system, "pair": {}})
    train(config, tmp_path / "a", "cpu", initial=[ENCODERS / "siglip"])
    found = load_model(TrainingFiles(tmp_path / "a").model)
    assert found.text["fixed_length"] and found.text["captions"] == "and:clip4cir"
    assert found.image == published.image  # the encoders' own
    assert found.tokenizer.to_str() == published.tokenizer.to_str()
    weights = published.model.pair.state_dict()  # type: ignore[operator, union-attr]
    assert all(torch.equal(weight, weights[name]) for name, weight in found.model.pair.state_dict().items())  # type: ignore[operator, union-attr]
    assert len(list((tmp_path / "a").glob("encoded-*.npy"))) == 2  # each picture once
    (start,) = found.provenance["initial"]
    assert start["kind"] == "SigLIP"
    texts = TextTokens(found.tokenizer, found.text)
    together, lengths = texts([("red",), ("has longer laces and a red sole",)])
    alone, _ = texts([("red",)])
    assert together.shape[1] == alone.shape[1] == found.text["max_tokens"] == lengths[0]


def test_phi_is_trained_from_pictures_over_any_clip(tmp_path: Path) -> None:
    published = load_trained(ENCODERS / "open_clip")
    config = configuration(
        shoes(tmp_path / "data"), {"dataset": "shoes"}, {}, epochs=8, frozen_epochs=8, families_per_batch=5,
        learning_rate=1e-2,
    )  # fmt: skip
    config = replace(config, model={"system": "pic2word", "pair": {}, "hidden": [24]})
    train(config, tmp_path / "a", "cpu", initial=[ENCODERS / "open_clip"])
    found = load_model(TrainingFiles(tmp_path / "a").model)
    weights = published.model.pair.state_dict()  # type: ignore[operator, union-attr]
    assert all(torch.equal(weight, weights[name]) for name, weight in found.model.pair.state_dict().items())  # type: ignore[operator, union-attr]
    entries = map(json.loads, TrainingFiles(tmp_path / "a").log.read_text().splitlines())
    losses = [entry["loss"] for entry in entries if entry["event"] == "epoch"]
    assert losses[-1] < losses[0] - 0.1
    asked = found.tokenizer.encode("is red")
    assert asked.tokens[1:5] == ["a</w>", "photo</w>", "of</w>", "*</w>"]
    assert found.model.config["place"] == 4
    # From its file another phi goes on with the same prompt; a Combiner cannot.
    second = replace(config, training=replace(config.training, epochs=1, frozen_epochs=1))
    train(second, tmp_path / "b", "cpu", initial=[TrainingFiles(tmp_path / "a").model])
    again = load_model(TrainingFiles(tmp_path / "b").model)
    assert again.tokenizer.encode("is red").ids == asked.ids
    with pytest.raises(UsageError, match="is read for what would take its place"):
        train(second, tmp_path / "a", "cpu", initial=[TrainingFiles(tmp_path / "a").model])
    with pytest.raises(TrainingError, match="reads every text behind a prompt"):
        combiner = replace(second, model={"system": "combiner", "pair": {}})
        train(combiner, tmp_path / "c", "cpu", initial=[TrainingFiles(tmp_path / "a").model])


def test_the_loss_of_pictures_is_that_of_the_bare_prompt(tmp_path: Path) -> None:
    trained = load_trained([ENCODERS / "searle.pt", ENCODERS / "open_clip"])
    model: Any = trained.model
    torch.manual_seed(4)
    rows = torch.randn(3, 16)
    with torch.no_grad():
        texts = TextTokens(trained.tokenizer, trained.text)
        found = model.loss_of_pictures(rows, model.encode_text(*texts([("is red",), ("a",)])))
        bare = TextTokens(load_trained(ENCODERS / "open_clip").tokenizer, trained.text)
        prompt = model.encode_text(*bare([("a photo of $",)])).expand(3, -1, -1)
        query = torch.nn.functional.normalize(model.compose_vector(rows, prompt), dim=-1)
        scores = query @ torch.nn.functional.normalize(rows, dim=-1).T * model.logit_scale.exp()
    both = (torch.nn.functional.cross_entropy(x, torch.arange(3)) for x in (scores, scores.T))
    torch.testing.assert_close(found, sum(both) / 2)


def test_a_head_over_a_pair_needs_its_encoders(tmp_path: Path) -> None:
    config = configuration(shoes(tmp_path / "data"), {"dataset": "shoes"}, {}, epochs=1)
    config = replace(config, model={"system": "pair-artemis", "pair": {}})
    with pytest.raises(TrainingError, match="give the folder of a CLIP or a SigLIP with --initial"):
        train(config, tmp_path / "a", "cpu")
    wrong = replace(config, model={"system": "pic2word", "pair": {}})
    with pytest.raises(CirError, match=r"a picture becomes a word of CLIP alone|as one word between"):
        train(wrong, tmp_path / "a", "cpu", initial=[ENCODERS / "siglip"])


def test_a_model_of_other_texts_gives_its_words_by_name(tmp_path: Path) -> None:
    theirs = build_tokenizer(vocabulary_from_texts(["has red soles and laces", "is"]))
    torch.manual_seed(1)
    text = {**SMALL["text"], "vocabulary_size": theirs.get_vocab_size()}
    model = build_model({**SMALL, "text": text})
    save_model(tmp_path / "a.pt", TrainedModel(model, theirs, plain_resize(24), word_text()))
    mine = build_model(SMALL)
    before = words(mine)
    start_from(mine, tmp_path / "a.pt", TOKENIZER)
    after, vocabulary = words(mine), theirs.get_vocab()
    assert before.keys() - vocabulary.keys() == {"longer"}
    assert after["longer"] == before["longer"]
    assert all(
        after[word] == model.text_encoder.embed.weight[vocabulary[word]].tolist()  # type: ignore[union-attr, index]
        for word in ("is", "red", "has", "laces", "<start>")
    )


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
