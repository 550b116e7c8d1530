"""Every system learns a few queries by heart, and then answers them as a bundle does, in evaluation mode."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional

from cir_export.models import RetrievalModel, build_model
from cir_export.models.base import pairwise_scores
from tests.export.systems.examples import CONFIGS, WORDS, side

_COUNT = 6
_ARTEMIS = {
    name: {
        **CONFIGS["tirg"],
        "system": name,
        "text": {"encoder": "bigru", "vocabulary_size": len(WORDS), "word_dim": 10},
    }
    for name in ("artemis", "is-only", "em-only", "image-only", "text-only", "late-fusion")
}
_ALL = {
    name: config if "clip" in config else {**config, "image": {**config["image"], "size": 24}}
    for name, config in {**_ARTEMIS, **CONFIGS}.items()
}
# The transformer learns in a tenth of the time of CLIP's convolutions; the Combiner is the same.
_ALL["clip4cir-combiner"] = {**CONFIGS["clip4cir-combiner"], "clip": CONFIGS["clip4cir-sum"]["clip"]}
_STEPS = 200


def test_the_tests_threads_were_set_before_pytorch_was_loaded() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


def pictures(pixels: int, seed: int) -> torch.Tensor:
    """Random colours in 3 x 3 fields: uint8 (n, pixels, pixels, 3)."""
    dice = torch.Generator().manual_seed(seed)
    fields = torch.randint(0, 256, (_COUNT, 3, 3, 3), generator=dice).float()
    large = functional.interpolate(fields, (pixels, pixels), mode="nearest")
    return large.permute(0, 2, 3, 1).to(torch.uint8)


def share_found(model: RetrievalModel, *query: torch.Tensor) -> float:
    """Share of the queries whose own target comes first."""
    with torch.no_grad():
        return float((model(*query).argmax(1) == torch.arange(_COUNT)).float().mean())


@pytest.mark.parametrize("name", _ALL)
def test_a_system_learns_by_heart(name: str) -> None:
    torch.manual_seed(5)
    model = build_model(_ALL[name])
    pixels = side(name) if name.startswith("clip") else 24
    references, targets = pictures(pixels, 1), pictures(pixels, 2)
    # Texts of one length that differ in every word: any of the two inputs tells the target.
    tokens = torch.stack([torch.arange(4) + 5 + i for i in range(_COUNT)]) % len(WORDS)
    lengths = torch.full((_COUNT,), 4)
    before = share_found(model.eval(), references, tokens, lengths, targets)
    assert before <= 0.5
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(1, _STEPS + 1):
        model.train()
        seen, text = model.encode_reference(references), model.encode_text(tokens, lengths)
        loss = model.own_loss(seen, text, targets)
        if loss is None:
            scores = pairwise_scores(model.compose(seen, text), model.encode_gallery(targets))
            loss = functional.cross_entropy(scores * model.logit_scale.exp(), torch.arange(_COUNT))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0 and share_found(model.eval(), references, tokens, lengths, targets) == 1:
            return
    pytest.fail(f"{_STEPS} steps did not teach {name} {_COUNT} queries")
