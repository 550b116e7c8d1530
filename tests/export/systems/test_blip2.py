"""BLIP-2, CoVR-2 and SPRC, against transformers and salesforce-lavis (tools/golden/blip2.py)."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cir_export.checkpoints import load_trained
from cir_export.model_file import TrainedModel, load_model, save_model
from cir_export.models import pairwise_scores
from cir_export.preprocessing import check_inputs, text_input
from cir_infer import Gallery, Searcher
from cir_infer.errors import CheckpointError, UsageError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from tests.export.systems.shared import GOLDEN, assert_same_ranking, exported

BLIP2 = GOLDEN / "blip2"
IMAGES = sorted((GOLDEN / "encoders").glob("*.png"))
VOCABULARY = BLIP2 / "vocab.txt"
STATES = {
    "covr2": ("model", {}),
    "sprc": ("Blip2QformerCirAlignPrompt", {"prompt_tokens": torch.zeros(1, 4, 64)}),
}
OWN = {"itm_head.weight": torch.zeros(2, 64), "itm_head.bias": torch.zeros(2), "temp": torch.tensor(0.07)}


@cache
def answers(where: str = "") -> dict[str, Any]:
    with np.load(BLIP2 / where / "golden.npz") as file:
        return dict(file)


def checkpoint(tmp_path: Path, system: str, vit: str = "lavis", **further: Any) -> Path:
    """A file as its authors would have written it."""
    key, own = STATES[system]
    heads = OWN if system == "sprc" else {}
    weights = {**torch.load(BLIP2 / f"{vit}.pt", weights_only=True), **heads, **own, **further}
    torch.save({"epoch": 7, key: weights}, tmp_path / f"{system}.pt")
    return tmp_path / f"{system}.pt"


def tokens_of(trained: TrainedModel, where: str = "") -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """The tokens of all texts, which are those of the package."""
    said = json.loads((BLIP2 / where / "tokens.json").read_text())
    read = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text)).read(said["texts"])
    assert [row[:n] for row, n in zip(read.ids.tolist(), read.lengths, strict=True)] == said["ids"]
    return torch.tensor(read.ids), torch.tensor(read.lengths), said["texts"]


def pixels_of(trained: TrainedModel) -> np.ndarray:
    spec = check_inputs(trained.image, trained.text)
    return np.stack([preprocess(image, spec) for image in IMAGES])


def judge(found: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert_same_ranking(found.numpy(), expected)


@torch.no_grad()
@pytest.mark.parametrize("vit", ["lavis", "clip"])
@pytest.mark.parametrize("system", ["covr2", "sprc"])
def test_rows_and_queries_are_those_of_lavis_modules(tmp_path: Path, system: str, vit: str) -> None:
    trained = load_trained(checkpoint(tmp_path, system, vit), VOCABULARY)
    golden, model = answers(), trained.model
    assert (model.system, trained.provenance["epoch"]) == (system, 7)
    ids, lengths, texts = tokens_of(trained)
    images = torch.tensor(golden["pixels"])
    if system == "covr2":
        np.testing.assert_array_equal(pixels_of(trained), golden["pixels"])
    rows = model.encode_gallery(images)
    expected = golden[f"{vit}_rows"]
    np.testing.assert_allclose(rows, expected if system == "sprc" else expected.mean(1), atol=1e-5)
    reference = model.encode_reference(images)[torch.arange(len(texts)) % len(images)]
    terms = model.compose(reference, model.encode_text(ids, lengths))
    assert terms.weights is None
    np.testing.assert_allclose(terms.numerators[:, 0], golden[f"{vit}_{system}"], atol=1e-5)
    judge(pairwise_scores(terms, rows), golden[f"{vit}_{system}_scores"])


@torch.no_grad()
def test_a_folder_of_transformers_scores_as_the_package_does() -> None:
    trained = load_trained(BLIP2 / "folder")
    golden, model = answers("folder"), trained.model
    assert trained.provenance["format"] == "Hugging Face Blip2ForImageTextRetrieval"
    ids, lengths, _ = tokens_of(trained, "folder")
    np.testing.assert_array_equal(pixels_of(trained), golden["pixels"])
    rows, text = model.encode_gallery(torch.tensor(golden["pixels"])), model.encode_text(ids, lengths)
    np.testing.assert_allclose(rows, golden["image"], atol=1e-5)
    np.testing.assert_allclose(text, golden["text"], atol=1e-5)
    judge(pairwise_scores(model.compose(rows, text), rows), golden["scores"])


def test_lavis_own_checkpoint_is_a_search_by_text(tmp_path: Path) -> None:
    torch.save(
        {"model": {**torch.load(BLIP2 / "lavis.pt", weights_only=True), **OWN}}, tmp_path / "blip2.pth"
    )
    assert load_trained(tmp_path / "blip2.pth", VOCABULARY).model.system == "blip2-text-only"


def test_sprc_from_photographs_to_a_refined_hit(tmp_path: Path) -> None:
    """Rows of four vectors, a reference that is seen as tokens, scores of the modules at every rank."""
    trained = load_trained(checkpoint(tmp_path, "sprc"), VOCABULARY)
    with exported(trained, tmp_path / "sprc.cir", texts=4) as engine:
        assert (engine.manifest.tokens_per_item, engine.manifest.reduce, engine.manifest.version) == (
            4,
            "max",
            2,
        )
        with Gallery.create(tmp_path / "sprc.gallery", engine, dtype="float32") as gallery:
            gallery.add(IMAGES, ids=[path.name for path in IMAGES])
    with Searcher(tmp_path / "sprc.cir", gallery=tmp_path / "sprc.gallery", device="cpu") as searcher:
        hits = searcher.query(IMAGES[1], "is red", k=4)
        with torch.no_grad():
            ids, lengths, _ = tokens_of(trained)
            images = torch.tensor(pixels_of(trained))
            terms = trained.model.compose(
                trained.model.encode_reference(images[1:2]), trained.model.encode_text(ids[:1], lengths[:1])
            )
            expected = pairwise_scores(terms, trained.model.encode_gallery(images))[0].numpy()
        order = np.argsort(-expected, kind="stable")[:4]
        assert [hit.id for hit in hits] == [IMAGES[i].name for i in order]
        np.testing.assert_allclose([hit.score for hit in hits], expected[order], atol=1e-4)
        # The reference is its image's tokens, which no row holds: refining takes the image.
        assert not searcher.engine.row_is_reference
        assert len(searcher.query(IMAGES[order[0]], "a", k=2, exclude=[hits[0].id])) == 2


# Both graphs of the search by text are parts of SPRC's, which is exported above.
@pytest.mark.parametrize("system", ["covr2", pytest.param("blip2-text-only", marks=pytest.mark.slow)])
def test_the_others_export_and_agree(tmp_path: Path, system: str) -> None:
    own = system != "covr2"
    trained = (
        load_trained(BLIP2 / "folder") if own else load_trained(checkpoint(tmp_path, system), VOCABULARY)
    )
    with exported(trained, tmp_path / "b.cir", texts=4) as engine:
        assert (engine.needs_reference, engine.tokens_per_item) == ((False, 5) if own else (True, 1))


def test_a_model_file_keeps_it(tmp_path: Path) -> None:
    trained = load_trained(checkpoint(tmp_path, "sprc"), VOCABULARY)
    save_model(tmp_path / "model.pt", trained)
    found = load_model(tmp_path / "model.pt").model
    assert found.tokens_per_item == 4
    for name, value in found.state_dict().items():
        assert torch.equal(value, trained.model.state_dict()[name])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "covr2")
    with pytest.raises(
        CheckpointError, match=r"does not hold its tokenizer; give BERT's as --vocab: vocab.txt"
    ):
        load_trained(path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY.read_text().splitlines()[:60]))
    with pytest.raises(CheckpointError, match=r"has 60 word pieces and .* word vectors for"):
        load_trained(path, tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="no vocabulary of BERT"):
        load_trained(path, tmp_path / "vocab.txt")
    for further, message in (
        ({"Qformer.bert.encoder.layer.1.output.dense.weight": torch.zeros(64, 71)}, "has shape"),
        ({"visual_encoder.neck.weight": torch.zeros(3)}, "visual_encoder.neck.weight has no place"),
        ({"visual_encoder.blocks.1.attn.q_bias": torch.zeros(3)}, "q_bias or v_bias of block 1"),
        ({"text_proj.bias": torch.full((16,), torch.nan)}, "NaN or infinity"),
        ({"visual_encoder.pos_embed": torch.zeros(3)}, "is missing or has another shape"),
        ({"visual_encoder.pos_embed": torch.zeros(1, 0, 88)}, "is missing or has another shape"),
        ({"visual_encoder.pos_embed": torch.zeros(1, 7, 88)}, "7 places has no square grid"),
        ({"query_tokens": torch.zeros(1, 4, 64, dtype=torch.int64)}, "int64; expected floats"),
        ({"text_proj.bias": torch.zeros(16, dtype=torch.complex64)}, "complex64; expected floats"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_trained(checkpoint(tmp_path, "covr2", **further), VOCABULARY)


def test_a_folder_that_is_another_blip2(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--system sum: a Blip2ForImageTextRetrieval is text-only alone"):
        load_trained(BLIP2 / "folder", system="sum")
    folder = Path(shutil.copytree(BLIP2 / "folder", tmp_path / "folder"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["Blip2ForConditionalGeneration"]})
    )
    with pytest.raises(CheckpointError, match="BLIP-2 that writes texts"):
        load_trained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "qformer_config": 3}))
    with pytest.raises(CheckpointError, match="qformer_config is 3; expected an object"):
        load_trained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "num_query_tokens": 6}))
    with pytest.raises(CheckpointError, match="query_tokens has shape"):
        load_trained(folder)
