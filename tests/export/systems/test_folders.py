"""Folders of transformers and open_clip, against the answers of those packages (tools/golden/encoders.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cir_export.checkpoints import load_trained
from cir_export.preprocessing import text_input
from cir_infer.inputs.texts import TextReader
from cir_infer.scoring.contract import QueryTerms
from tests.export.systems.folders import (
    answers,
    copied,
    edited,
    images,
    loaded,
    pixels,
    reader,
    texts,
)
from tests.export.systems.shared import assert_same_ranking, exported, scores

FOLDERS = ("clip", "siglip", "open_clip")


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", FOLDERS)
def test_tokens_are_those_of_the_package(name: str) -> None:
    said, ids, _ = texts(name)
    tokens, whole = reader(name).read(said), loaded(name).text.get("fixed_length", False)
    for row, length, expected in zip(tokens.ids.tolist(), tokens.lengths, ids, strict=True):
        assert (row if whole else row[:length]) == expected


@pytest.mark.parametrize("name", FOLDERS)
def test_pixels_are_those_of_the_package(name: str) -> None:
    """Transformers 4 and open_clip resize with Pillow, as the runtime does."""
    np.testing.assert_array_equal(pixels(name), answers(name)["pixels"])


@torch.no_grad()
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_gives_the_answers_of_the_package(name: str) -> None:
    model, said = loaded(name).model, reader(name).read(texts(name)[0])
    rows = model.encode_gallery(torch.tensor(pixels(name))).numpy()
    text = model.encode_text(torch.tensor(said.ids), torch.tensor(said.lengths)).numpy()
    references = rows[texts(name)[2] % len(rows)]
    terms = model.compose(torch.tensor(references), torch.tensor(text))
    weights = None if terms.weights is None else terms.weights.numpy()
    judge(name, rows, text, QueryTerms(terms.numerators.numpy(), weights, model.term_names))


def test_a_bundle_of_fixed_length_gives_them_too(tmp_path: Path) -> None:
    with exported(loaded("siglip"), tmp_path / "siglip.cir", texts=4) as engine:
        rows, text = engine.encode_images(images()), engine.encode_texts(texts("siglip")[0])
        judge("siglip", rows, text, engine.compose(rows[texts("siglip")[2] % len(rows)], text))
        assert engine.manifest.version == 2
        assert engine.encode_texts([]).shape == (0, 32)


def judge(name: str, rows: np.ndarray, text: np.ndarray, terms: QueryTerms) -> None:
    """Embeddings, scores and ranks against the package's."""
    golden, places = answers(name), texts(name)[2]
    image, expected, wanted = golden["image"], golden["text"][places], golden["sum_scores"][places]
    if name == "siglip":  # whose sum is one of unit embeddings
        image, expected = unit(image), unit(expected)
        wanted = unit(image[places % len(image)] + expected) @ image.T
    np.testing.assert_allclose(rows, image, atol=1e-5)
    np.testing.assert_allclose(text, expected, atol=1e-5)
    found = scores(terms, rows)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert_same_ranking(found, wanted)


@torch.no_grad()
def test_either_encoder_alone_is_a_system_of_its_own() -> None:
    image, text = torch.randn(2, 24), torch.randn(2, 24)
    for system, composes, query in (
        ("sum", ("reference", "text"), image + text),
        ("image-only", ("reference",), image),
        ("text-only", ("text",), text),
    ):
        model = loaded("clip", system).model
        terms = model.compose(image, text)
        assert (model.composes, model.weighted) == (composes, True)
        torch.testing.assert_close(terms.numerators[:, 0], query / query.norm(dim=1, keepdim=True))


def test_a_text_cannot_type_a_special_token() -> None:
    ids = reader("clip").read(["red <|endoftext|> blue"]).ids[0].tolist()
    assert ids.count(687) == 1 and ids[-1] == 687


def as_siglip_2(folder: Path) -> dict[str, int]:
    """The folder with a tokenizer of Gemma's kind, as SigLIP 2 has it: merges, and bytes for what is rare."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    spelt = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {piece: i for i, piece in enumerate([*special, *spelt, "▁", *"abder", "re", "red", "▁red"])}
    said = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    table = {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": piece, **said} for i, piece in enumerate(special)],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, text],
            "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [["r", "e"], ["re", "d"], ["▁", "red"]],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(table))
    named = {"tokenizer_class": "GemmaTokenizer", "add_bos_token": False, "add_eos_token": True}
    named |= {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return vocabulary


def test_texts_of_siglip_2_are_small_letters_end_and_are_filled_up(tmp_path: Path) -> None:
    folder = copied(tmp_path, "siglip")
    vocabulary = as_siglip_2(folder)
    parts = sorted(folder.glob("*.safetensors"))
    weights = {name: weight for part in parts for name, weight in load_file(part).items()}
    for part in [*parts, folder / "model.safetensors.index.json"]:
        part.unlink()
    weights["text_model.embeddings.token_embedding.weight"] = torch.ones(len(vocabulary), 32)
    save_file(weights, folder / "model.safetensors")
    edited(folder, "config.json", lambda c: c["text_config"].update(vocab_size=len(vocabulary)))
    trained = load_trained(folder)
    texts = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text))
    for said, expected in (
        ("A RED", ["a", "▁red"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("<eos>", ["<0x3C>", "e", "<0x6F>", "<0x73>", "<0x3E>"]),
    ):
        filled = [*expected, "<eos>", *["<pad>"] * (15 - len(expected))]
        assert texts.read([said]).ids.tolist() == [[vocabulary[piece] for piece in filled]]
