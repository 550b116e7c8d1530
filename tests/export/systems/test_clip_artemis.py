"""ARTEMIS' two attentions over a CLIP."""

from __future__ import annotations

import torch

from cir_export.models import build_model
from tests.export.systems.examples import CONFIGS, batch, example


@torch.no_grad()
def test_it_starts_as_the_sum_of_both_cosines() -> None:
    torch.manual_seed(2)
    model = build_model(CONFIGS["clip-artemis"]).eval()
    images, tokens, lengths = batch("clip-artemis")
    rows, text = model.encode_gallery(images), model.encode_text(tokens, lengths)
    torch.testing.assert_close(model(images, tokens, lengths, images), rows @ rows.T + text @ rows.T)


@torch.no_grad()
def test_over_a_pair_it_starts_there_too() -> None:
    torch.manual_seed(2)
    pair = {"family": "clip", **CONFIGS["clip-artemis"]["clip"]}
    model = build_model({"system": "pair-artemis", "pair": pair}).eval()
    images, tokens, lengths = batch("clip-artemis")
    rows, text = model.encode_gallery(images), model.encode_text(tokens, lengths)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(model(images, tokens, lengths, images), rows @ rows.T + text @ rows.T)
    assert model.weighted and len(model.term_names) == 2


@torch.no_grad()
def test_kept_embeddings_of_its_clip_take_the_place_of_pictures() -> None:
    model = example("clip-artemis")
    images, _, _ = batch("clip-artemis")
    kept = model.clip.encode_image(images)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(model.encode_gallery(kept), model.encode_gallery(images))
