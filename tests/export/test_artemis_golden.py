"""ARTEMIS held against the authors' own code, through the runtime's public API.

Tokens are equal, embeddings agree within 1e-5, scores within 1e-4, ranks are identical.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cir_export.checkpoints import load_trained
from cir_export.export import export_bundle
from cir_export.models import pairwise_scores
from cir_export.preprocessing import check_inputs, text_input
from cir_export.verification import Samples
from cir_infer import Engine, Gallery, Searcher
from cir_infer.bundle import Bundle
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import TextReader
from cir_infer.scoring.contract import Rows
from cir_infer.scoring.reference import ReferenceScorer, term_scores
from tests.export.conftest import GOLDEN, Case, with_version
from tests.export.systems.shared import composes_in_parts, seeded_checkpoint
from tests.export.token_batches import token_batch

CASES = ("cirr_feat_bigru_small", "cirr_feat_lstm_small")
VERSIONS = ("ARTEMIS", "EM-only", "IS-only", "late-fusion", "cross-modal", "visual-search")
SHARED = Path(__file__).parents[3] / "shared" / "golden"

Golden = Callable[..., Case]


def _scores(case: Case, text: np.ndarray) -> np.ndarray:
    engine = case.engine
    rows = engine.encode_images(list(case.answers["gallery_features"]))
    references = engine.encode_references(list(case.answers["gallery_features"][case.answers["ref_index"]]))
    terms = engine.compose(references, text)
    return term_scores(terms, rows.astype(np.float64)).sum(1)


@pytest.mark.parametrize("name", CASES)
def test_token_ids_are_equal(golden: Golden, name: str) -> None:
    case = golden(name)
    bundle = Bundle(case.engine.path)
    assert bundle.manifest.text is not None
    ids, lengths = TextReader(bundle.tokenizer(), bundle.manifest.text).read(case.captions)
    np.testing.assert_array_equal(ids, case.answers["token_ids_padded0"])
    np.testing.assert_array_equal(lengths, case.answers["lengths"])


@pytest.mark.parametrize("version", VERSIONS)
def test_compose_begins_with_the_text_where_it_reads_weights_for_it(golden: Golden, version: str) -> None:
    assert composes_in_parts(golden(CASES[0], version).engine) == (version in ("ARTEMIS", "IS-only"))


@pytest.mark.parametrize("name", CASES)
def test_embeddings_agree(golden: Golden, name: str) -> None:
    case = golden(name)
    rows = case.engine.encode_images(list(case.answers["gallery_features"]))
    np.testing.assert_allclose(rows, case.answers["gallery_emb"], atol=1e-5, rtol=0)
    text = case.engine.encode_texts(case.captions)
    np.testing.assert_allclose(text, case.answers["txt_emb_single"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_padding_to_the_batch_reproduces_the_authors_batches(golden: Golden, name: str) -> None:
    case = golden(name)
    text = case.engine.encode_texts(case.captions, batch_size=8, pad_to_batch="lstm" in name)
    np.testing.assert_allclose(text, case.answers["txt_emb_official_batches"], atol=1e-5, rtol=0)
    scores = _scores(case, text)
    np.testing.assert_allclose(scores, case.answers["scores_all/ARTEMIS_official_batches"], atol=1e-4, rtol=0)


def test_the_lstm_does_not_read_padding_by_default(golden: Golden) -> None:
    case = golden("cirr_feat_lstm_small")
    padded = case.engine.encode_texts(case.captions, batch_size=8, pad_to_batch=True)
    alone = case.engine.encode_texts(case.captions, batch_size=1)
    np.testing.assert_allclose(case.engine.encode_texts(case.captions, batch_size=17), alone, atol=1e-6)
    assert np.abs(padded - alone).max() > 1e-3


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_loads_and_scores_as_the_authors_do(tmp_path: Path, version: str) -> None:
    """In PyTorch, for both text encoders; the five queries were one batch, which the lstm reads padded."""
    for name in CASES:
        trained = load_trained(with_version(name, version, tmp_path), GOLDEN / name / "cirr_vocab.pkl")
        with np.load(GOLDEN / name / "golden.npz") as answers:
            expected, references = answers[f"scores/{version}"], answers["ref_index"]
            features = torch.from_numpy(answers["gallery_features"])
        captions = json.loads((GOLDEN / name / "queries.json").read_text())["captions"][: len(expected)]
        tokens, lengths = token_batch(trained.tokenizer, [caption for (caption,) in captions])
        if "lstm" in name:
            lengths[:] = tokens.shape[1]
        with torch.inference_mode():
            rows = trained.model.encode_gallery(features)
            text = trained.model.encode_text(tokens, lengths)
            scores = pairwise_scores(trained.model.compose(rows[references[: len(expected)]], text), rows)
        np.testing.assert_allclose(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "version", "key"),
    [
        (CASES[0], "ARTEMIS", "scores/ARTEMIS"),
        (CASES[0], "EM-only", "scores/EM-only"),
        (CASES[0], "visual-search", "scores/visual-search"),
        (CASES[1], "ARTEMIS", "scores_all/ARTEMIS_single"),
    ],
)
def test_scores_and_ranks_through_the_searcher(
    golden: Golden, tmp_path: Path, name: str, version: str, key: str
) -> None:
    """Exported, over a gallery on disk, the reference excluded; one version reads no image, one no text."""
    case = golden(name, version)
    expected = case.answers[key]
    ids = case.answers["gallery_names"].tolist()
    features = list(case.answers["gallery_features"])
    with Gallery.create(tmp_path / "shop.gallery", case.engine, dtype="float32") as gallery:
        gallery.add(features, ids=ids)
        searcher = Searcher(case.engine, gallery)
        for query, reference in enumerate(case.answers["ref_index"][: len(expected)]):
            hits = searcher.query(
                features[reference], case.captions[query], k=len(ids), exclude=[ids[reference]]
            )
            order = [row for row in np.argsort(-expected[query], kind="stable") if row != reference]
            assert [hit.id for hit in hits] == [ids[row] for row in order]
            np.testing.assert_allclose([hit.score for hit in hits], expected[query][order], atol=1e-4)


def test_all_scores_of_single_sentences(golden: Golden) -> None:
    for name in CASES:
        case = golden(name)
        scores = _scores(case, case.engine.encode_texts(case.captions))
        np.testing.assert_allclose(scores, case.answers["scores_all/ARTEMIS_single"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_top_50_lists_of_the_authors_evaluation(golden: Golden, name: str) -> None:
    case = golden(name)
    features = list(case.answers["gallery_features"])
    references = case.answers["ref_index"]
    text = case.engine.encode_texts(case.captions, batch_size=8, pad_to_batch="lstm" in name)
    terms = case.engine.compose(case.engine.encode_references([features[r] for r in references]), text)
    scorer = ReferenceScorer(Rows.of(case.engine.encode_images(features)))
    for query, reference in enumerate(references):
        allow = np.ones(len(features), bool)
        allow[reference] = False
        top = scorer.topk(terms[query], 50, np.packbits(allow, bitorder="little"))
        np.testing.assert_array_equal(top.rows[0], case.answers["top50/val"][query])


@pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the full-size golden case is looked for in {SHARED}, which does not exist"
)
def test_full_size_resnet18_gives_the_authors_answers(tmp_path: Path) -> None:
    """In PyTorch; that a bundle of a ResNet-18 of this size does too is seen for TIRG's."""
    folder = SHARED / "artemis" / "resnet18_lstm"
    trained = load_trained(seeded_checkpoint(folder, tmp_path / "ckpt.pth"), folder / "fashionIQ_vocab.pkl")
    with np.load(folder / "golden.npz") as found:
        answers = dict(found)
    captions = json.loads((folder / "queries.json").read_text())["captions"]
    spec = check_inputs(trained.image, trained.text)
    images = [SHARED / "data" / "fashionIQ" / "img" / f"{name}.jpg" for name in answers["gallery_names"]]
    read = TextReader(trained.tokenizer.to_str().encode(), text_input(trained.text)).read(captions)
    np.testing.assert_array_equal(read.ids, answers["token_ids_padded0"])
    with torch.inference_mode():
        rows = trained.model.encode_gallery(torch.tensor(np.stack([preprocess(i, spec) for i in images])))
        text = trained.model.encode_text(torch.tensor(read.ids), torch.tensor(read.lengths))
        scores = pairwise_scores(trained.model.compose(rows[answers["ref_index"]], text), rows)
    np.testing.assert_allclose(rows, answers["gallery_emb"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(text, answers["txt_emb_single"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(scores, answers["scores_all/ARTEMIS_single"], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the full-size golden case is looked for in {SHARED}, which does not exist"
)
def test_full_size_resnet18_on_images(tmp_path: Path) -> None:
    folder = SHARED / "artemis" / "resnet18_lstm"
    trained = load_trained(seeded_checkpoint(folder, tmp_path / "ckpt.pth"), folder / "fashionIQ_vocab.pkl")
    with np.load(folder / "golden.npz") as found:
        answers = dict(found)
    captions = json.loads((folder / "queries.json").read_text())["captions"]
    data = SHARED / "data" / "fashionIQ"
    images = [data / "img" / f"{name}.jpg" for name in answers["gallery_names"]]
    export_bundle(trained, tmp_path / "artemis.cir", Samples(images[:6], captions[:6], "golden images"))
    engine = Engine(tmp_path / "artemis.cir", device="cpu")

    ids, lengths = TextReader(
        trained.tokenizer.to_str().encode(),
        engine.manifest.text,  # type: ignore[arg-type]
    ).read(captions)
    np.testing.assert_array_equal(ids, answers["token_ids_padded0"])
    np.testing.assert_array_equal(lengths, answers["lengths"])
    rows = engine.encode_images(images)
    np.testing.assert_allclose(rows, answers["gallery_emb"], atol=1e-5, rtol=0)
    single = engine.encode_texts(captions, batch_size=5)
    np.testing.assert_allclose(single, answers["txt_emb_single"], atol=1e-5, rtol=0)
    batched = engine.encode_texts(captions, batch_size=10, pad_to_batch=True)
    np.testing.assert_allclose(batched, answers["txt_emb_official_batches"], atol=1e-5, rtol=0)

    references = rows[answers["ref_index"]]
    for text, key in ((single, "single"), (batched, "official_batches")):
        scores = term_scores(engine.compose(references, text), rows.astype(np.float64)).sum(1)
        np.testing.assert_allclose(scores, answers[f"scores_all/ARTEMIS_{key}"], atol=1e-4, rtol=0)
    # The authors' evaluation: rank of the target among the category's images, the reference excluded.
    pairs = json.loads((data / "annotations" / "captions" / "cap.dress.val.json").read_text())
    names = answers["gallery_names"].tolist()
    targets = [names.index(pair["target"]) for pair in pairs for _ in range(2)]
    scores[np.arange(len(scores)), answers["ref_index"]] = -np.inf
    ranks = [(row > row[target]).sum() for row, target in zip(scores, targets, strict=True)]
    np.testing.assert_array_equal(ranks, answers["rank_of_gt/dress"])
