"""Pic2Word, SEARLE and LinCIR, against open_clip with an exchanged word vector (tools/golden/encoders.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cir_export.checkpoints import load_trained
from cir_export.model_file import TrainedModel
from cir_export.preprocessing import check_inputs, text_input
from cir_infer.errors import CheckpointError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.scoring.contract import QueryTerms
from tests.export.systems.shared import GOLDEN, assert_same_ranking, exported, scores

ENCODERS = GOLDEN / "encoders"
IMAGES = sorted(ENCODERS.glob("*.png"))


def files(form: str, tmp_path: Path) -> list[Path]:
    """Pic2Word's checkpoint holds its CLIP, SEARLE's does not."""
    if form == "searle":
        return [ENCODERS / "searle.pt", ENCODERS / "open_clip"]
    clip = load_file(ENCODERS / "open_clip" / "open_clip_model.safetensors")
    phi = torch.load(ENCODERS / "pic2word.pt", weights_only=True)
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{n}": v for n, v in clip.items()}, **phi}, tmp_path / "p.pt"
    )
    return [tmp_path / "p.pt"]


def answers(form: str) -> tuple[dict[str, Any], list[str], list[list[int]]]:
    said = json.loads((ENCODERS / f"{form}.json").read_text())
    with np.load(ENCODERS / f"{form}.npz") as file:
        return dict(file), said["texts"], said["ids"]


def judge(form: str, rows: np.ndarray, terms: QueryTerms) -> None:
    golden = answers(form)[0]
    np.testing.assert_allclose(rows, golden["image"], atol=1e-5)
    np.testing.assert_allclose(terms.numerators[:, 0], golden["query"], atol=1e-5)
    found = scores(terms, rows)
    np.testing.assert_allclose(found, golden["scores"], atol=1e-4)
    assert_same_ranking(found, golden["scores"])


@torch.no_grad()
@pytest.mark.parametrize("form", ["pic2word", "searle"])
def test_a_picture_becomes_the_word_that_it_is_there(tmp_path: Path, form: str) -> None:
    trained = load_trained(files(form, tmp_path))
    _, texts, ids = answers(form)
    tokens = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text)).read(texts)
    for row, length, expected in zip(tokens.ids.tolist(), tokens.lengths, ids, strict=True):
        assert row[:length] == expected
    spec, model = check_inputs(trained.image, trained.text), trained.model
    rows = model.encode_gallery(torch.tensor(np.stack([preprocess(image, spec) for image in IMAGES])))
    text = model.encode_text(torch.tensor(tokens.ids), torch.tensor(tokens.lengths))
    assert text.shape == (len(texts), 77, 9)
    terms = model.compose(rows[torch.arange(len(texts)) % len(rows)], text)
    judge(form, rows.numpy(), QueryTerms(terms.numerators.numpy(), terms.weights.numpy(), ("similarity",)))  # type: ignore[union-attr]


def test_a_bundle_refines_without_an_image(tmp_path: Path) -> None:
    trained: TrainedModel = load_trained(files("searle", tmp_path))
    assert "not for commercial use" in trained.provenance["weights_licence"]
    with exported(trained, tmp_path / "searle.cir", texts=4) as engine:
        assert engine.row_is_reference
        rows = engine.encode_images(IMAGES)
        texts = answers("searle")[1]
        judge(
            "searle",
            rows,
            engine.compose(rows[np.arange(len(texts)) % len(rows)], engine.encode_texts(texts)),
        )


def test_parts_that_are_missing_or_of_another_clip(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no CLIP; give the CLIP that it is over"):
        load_trained(ENCODERS / "searle.pt")
    with pytest.raises(
        CheckpointError, match="words of 8 values from embeddings of 16, and its CLIP has words of 32"
    ):
        load_trained([ENCODERS / "searle.pt", ENCODERS / "clip"])
    with pytest.raises(CheckpointError, match="without one"):
        load_trained([ENCODERS / "searle.pt", ENCODERS / "siglip"])
    with pytest.raises(CheckpointError, match="holds no CLIP under state_dict"):
        load_trained(ENCODERS / "pic2word.pt")
    with pytest.raises(CheckpointError, match="holds its own CLIP"):
        load_trained([*files("pic2word", tmp_path), ENCODERS / "open_clip"])
    phi = torch.load(ENCODERS / "searle.pt", weights_only=True)["Phi"]
    for change, message in (
        ({"layers.3.weight": torch.zeros(5, 7)}, "do not follow one another"),
        ({"norm.weight": torch.zeros(5)}, "holds norm.weight; expected layers.N"),
    ):
        torch.save({"Phi": {**phi, **change}}, tmp_path / "phi.pt")
        with pytest.raises(CheckpointError, match=message):
            load_trained([tmp_path / "phi.pt", ENCODERS / "open_clip"])
