"""Bi-BLIP4CIR: BLIP's encoders against transformers (tools/golden/blip2.py), and the Combiner over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cir_export.checkpoints import load_trained
from cir_export.models.clip4cir import Combiner
from cir_export.preprocessing import check_inputs, text_input
from cir_infer.errors import CheckpointError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from tests.export.systems.shared import GOLDEN, exported

BLIP2 = GOLDEN / "blip2"
VOCABULARY = BLIP2 / "vocab.txt"
BASE = BLIP2 / "blip.pth"


def files(tmp_path: Path) -> list[Path]:
    """BLIP with other texts' weights than the tuned encoder's, the tuned encoder, and a Combiner."""
    state = torch.load(BASE, weights_only=True)["model"]
    texts = {n: v for n, v in state.items() if n.startswith(("text_encoder.", "text_proj."))}
    torch.save({"epoch": 4, "BLIPTextEncoder": texts}, tmp_path / "tuned.pt")
    torch.save({"model": state | {n: v * 0 for n, v in texts.items()}}, tmp_path / "base.pth")
    torch.manual_seed(1)
    own = Combiner(12, 20, 30).state_dict()
    renamed: dict[str, Any] = {}
    for ours, theirs in (
        ("text.", "text_projection_layer."), ("image.", "image_projection_layer."),
        ("hidden.", "combiner_layer."), ("out.", "output_layer."), ("scalar_hidden.", "dynamic_scalar.0."),
        ("scalar_out.", "dynamic_scalar.3."),
    ):  # fmt: skip
        renamed |= {theirs + n.removeprefix(ours): v for n, v in own.items() if n.startswith(ours)}
    torch.save({"epoch": 9, "Combiner": renamed}, tmp_path / "combiner.pt")
    return [tmp_path / name for name in ("combiner.pt", "base.pth", "tuned.pt")]


@torch.no_grad()
def test_both_encoders_are_those_of_the_package_and_the_prompt_stands_before_every_part(
    tmp_path: Path,
) -> None:
    trained = load_trained(files(tmp_path), VOCABULARY)
    model, said = trained.model, json.loads((BLIP2 / "blip_tokens.json").read_text())
    assert (model.system, model.embedding_dim, trained.provenance["epoch"]) == ("combiner", 12, 9)
    read = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text)).read(said["texts"])
    assert [row[:n] for row, n in zip(read.ids.tolist(), read.lengths, strict=True)] == said["ids"]
    with np.load(BLIP2 / "blip.npz") as file:
        golden = dict(file)
    rows = model.encode_gallery(torch.tensor(golden["noise"].repeat(64, 1).repeat(64, 2)))
    text = model.encode_text(torch.tensor(read.ids), torch.tensor(read.lengths))
    np.testing.assert_allclose(rows, golden["image"], atol=1e-5)
    np.testing.assert_allclose(text, golden["text"], atol=1e-5)
    torch.manual_seed(1)
    combiner = Combiner(12, 20, 30).eval()
    expected = torch.nn.functional.normalize(combiner(rows, text[:3]), dim=-1)
    np.testing.assert_allclose(model.compose(rows, text[:3]).numerators[:, 0], expected, atol=1e-6)


def test_two_captions_are_prompted_each(tmp_path: Path) -> None:
    trained = load_trained(files(tmp_path), VOCABULARY)
    reader = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text))
    one, other = (reader.read([text]).ids.tolist() for text in (["is red.", "a dress"], "is red and a dress"))
    assert one == other


def test_a_bundle_agrees_and_explains(tmp_path: Path) -> None:
    with exported(load_trained(files(tmp_path), VOCABULARY), tmp_path / "b.cir", texts=4) as engine:
        assert engine.row_is_reference
        assert engine.manifest.explain is not None and engine.manifest.explain.height == 6


def test_blip_alone_is_the_sum_and_has_no_prompt() -> None:
    trained = load_trained(BASE, VOCABULARY)
    assert (trained.model.system, trained.provenance["format"]) == ("sum", "BLIP")
    assert "[FORWARD]" not in trained.tokenizer.to_str()


def test_images_are_prepared_as_clip4cir_does(tmp_path: Path) -> None:
    trained = load_trained(files(tmp_path), VOCABULARY)
    spec = check_inputs(trained.image, trained.text)
    assert preprocess(sorted((GOLDEN / "encoders").glob("*.png"))[0], spec).shape == (384, 384, 3)
    assert trained.image["steps"][0] == {"op": "target_pad", "ratio": 1.25}


def test_parts_that_do_not_fit_are_named(tmp_path: Path) -> None:
    combiner, base, tuned = files(tmp_path)
    with pytest.raises(CheckpointError, match="holds no image encoder; give BLIP's"):
        load_trained([combiner, tuned], VOCABULARY)
    with pytest.raises(CheckpointError, match="are both BLIP's weights; give one"):
        load_trained([base, BASE], VOCABULARY)
    with pytest.raises(CheckpointError, match="does not belong to a model of Bi-BLIP4CIR"):
        load_trained([base, BLIP2 / "folder" / "model.safetensors"], VOCABULARY)
    layers = {"text_projection_layer.weight": torch.zeros(3, 7), "combiner_layer.weight": torch.zeros(2, 6)}
    torch.save({"Combiner": layers}, combiner)
    with pytest.raises(CheckpointError, match="combines features of 7 values"):
        load_trained([combiner, base], VOCABULARY)
    torch.save({"BLIPTextEncoder": {}}, tuned)
    with pytest.raises(CheckpointError, match="holds no text encoder under BLIPTextEncoder"):
        load_trained([base, tuned], VOCABULARY)
    state = torch.load(base, weights_only=True)["model"]
    for name, value, message in (
        ("pos_embed", torch.zeros(1, 1, 16), "1 places has no square grid"),
        ("pos_embed", torch.zeros(2, 17, 16), "are not a ViT's"),
        ("patch_embed.proj.weight", torch.zeros(16, 3, 0, 0), "is missing or has another shape"),
        ("patch_embed.proj.weight", torch.zeros(16, 3, 500, 500), "patches of 500 pixels"),
        ("patch_embed.proj.weight", torch.zeros(()), "is missing or has another shape"),
    ):
        torch.save({"model": {**state, f"visual_encoder.{name}": value}}, base)
        with pytest.raises(CheckpointError, match=message):
            load_trained(base, VOCABULARY)


def test_a_clip_whose_weights_are_of_another_kind_is_refused(tmp_path: Path) -> None:
    """What BLIP's files were tried with goes for CLIP's."""
    weights = load_file(GOLDEN / "encoders" / "open_clip" / "open_clip_model.safetensors")
    for name, value, message in (
        ("visual.positional_embedding", torch.zeros(0, 64), "0 places has no square grid"),
        ("visual.positional_embedding", torch.zeros(7, 64), "7 places has no square grid"),
        ("ln_final.weight", torch.zeros(8, dtype=torch.complex64), "complex64; expected one like"),
        ("ln_final.weight", torch.zeros(8, dtype=torch.int32), "int32; expected one like"),
    ):
        torch.save({"CLIP": {**weights, name: value}, "epoch": 1}, tmp_path / "clip.pt")
        with pytest.raises(CheckpointError, match=message):
            load_trained(tmp_path / "clip.pt")
