"""The loss, the learning rate and the batches against their literal definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cir_export.models import build_model
from cir_export.models.base import INITIAL_LOGIT_SCALE
from cir_export.training.configuration import TrainingSettings
from cir_export.training.data import family_batches
from cir_export.training.loss import batch_classification_loss, negative_set_loss
from cir_export.training.optimisation import build_optimizer, freeze_trunks, learning_rate

MODEL = {
    "system": "artemis",
    "embedding_dim": 16,
    "image": {"trunk": "small", "size": 12, "channels": [4, 8], "pooling": "grid"},
    "text": {"encoder": "bigru", "vocabulary_size": 20, "word_dim": 8},
}


@settings(max_examples=60)
@given(st.integers(1, 7), st.integers(1, 5), st.floats(-1, 4), st.integers(0, 10**6))
def test_the_loss_is_the_literal_formula(queries, targets, log_gamma, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(queries, targets, generator=generator) * 2 - 1
    own = torch.randint(0, targets, (queries,), generator=generator)
    found = batch_classification_loss(scores, own, torch.tensor(log_gamma))
    gamma, total = math.exp(log_gamma), 0.0
    for i in range(queries):
        exponentials = [math.exp(gamma * s) for s in scores[i].tolist()]
        total -= math.log(exponentials[own[i]] / sum(exponentials))
    assert found.item() == pytest.approx(total / queries, rel=1e-4, abs=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(-1, 3), st.integers(0, 10**6))
def test_pairs_give_the_literal_soft_triplet_loss(queries, targets, log_gamma, seed):
    """TIRG, eq. 6: K = 2, every other target of the batch is the negative once."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(queries, targets, generator=generator) * 2 - 1
    own = torch.randint(0, targets, (queries,), generator=generator)
    found = negative_set_loss(scores, own, torch.tensor(log_gamma), 2, 0)
    gamma, terms = math.exp(log_gamma), []
    for i in range(queries):
        row, right = scores[i].tolist(), int(own[i])
        terms += [math.log1p(math.exp(gamma * (s - row[right]))) for j, s in enumerate(row) if j != right]
    expected = sum(terms) / len(terms) if terms else 0.0
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_set_of_the_whole_batch_is_batch_classification():
    generator = torch.Generator().manual_seed(1)
    scores, own, scale = (
        torch.rand(5, 7, generator=generator),
        torch.tensor([0, 3, 6, 2, 2]),
        torch.tensor(1.0),
    )
    whole = batch_classification_loss(scores, own, scale).item()
    assert negative_set_loss(scores, own, scale, 7, 1).item() == pytest.approx(whole, rel=1e-5)
    # Drawn sets of three estimate one loss: their mean settles, and is below that of the whole batch.
    torch.manual_seed(0)
    few, many = (negative_set_loss(scores, own, scale, 3, sets).item() for sets in (400, 800))
    assert few == pytest.approx(many, rel=0.05)
    assert many < whole


def test_sgd_and_slower_trunks_and_a_tenth_as_tirg_trains():
    config = TrainingSettings(
        epochs=1, optimizer="sgd", trunk_rate=0.1, learning_rate=0.01, schedule="tenth", tenth_steps=10
    )
    model = build_model(MODEL)
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, torch.optim.SGD)
    slow = {id(p) for group in optimizer.param_groups if group["rate"] == 0.1 for p in group["params"]}
    assert slow == {id(p) for p in model.trunks()[0].parameters()}
    assert len({id(p) for group in optimizer.param_groups for p in group["params"]}) == len(
        list(model.parameters())
    )
    rates = [learning_rate(config, step, 100) for step in (0, 9, 10, 25)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


def test_halving_starts_anew_when_the_frozen_epochs_are_over():
    config = TrainingSettings(epochs=58, learning_rate=8e-4, frozen_epochs=8)
    rates = [learning_rate(config, 5 * epoch, 5) for epoch in (0, 7, 8, 17, 18)]
    assert rates == pytest.approx([8e-4, 8e-4, 8e-4, 8e-4, 4e-4])


def test_gamma_starts_as_in_the_papers_code():
    assert INITIAL_LOGIT_SCALE == 2.65926
    assert build_model(MODEL).logit_scale.exp().item() == pytest.approx(14.286, abs=1e-2)


def test_halving_follows_the_paper():
    config = TrainingSettings(epochs=30, learning_rate=8e-4)
    rates = [learning_rate(config, 5 * epoch, 5) for epoch in (0, 9, 10, 19, 20)]
    assert rates == pytest.approx([8e-4, 8e-4, 4e-4, 4e-4, 2e-4])


def test_cosine_rises_and_falls_to_nothing():
    config = TrainingSettings(epochs=2, learning_rate=1e-2, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(config, step, 50) for step in range(100)]
    assert rates[0] < rates[1] < rates[2] < rates[3]
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[50] == pytest.approx(5e-3)
    assert rates[-1] < 1e-5


@settings(max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 1000))
def test_batches_hold_whole_families_and_every_query_once(families, per_batch, seed):
    tensor = torch.tensor(families)
    batches = list(family_batches(tensor, per_batch, seed, epoch=3))
    assert len(batches) == len(set(families)) // per_batch
    seen = torch.cat(batches).tolist() if batches else []
    assert sorted(seen) == (list(range(len(families))) if batches else [])
    for batch in batches:
        members = {families[q] for q in batch.tolist()}
        assert per_batch <= len(members) < 2 * per_batch
        assert len(batch) == sum(f in members for f in families)
    again = list(family_batches(tensor, per_batch, seed, epoch=3))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_epochs_are_ordered_differently():
    families = torch.arange(64)
    orders = [torch.cat(list(family_batches(families, 4, 0, epoch))) for epoch in range(3)]
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[1], orders[2])


def test_frozen_trunks_keep_weights_and_statistics():
    torch.manual_seed(0)
    model = build_model(MODEL)
    optimizer = build_optimizer(model, TrainingSettings(epochs=1, learning_rate=1e-2))
    trunk = model.trunks()[0]

    def step(frozen):
        before = {n: t.clone() for n, t in trunk.state_dict().items()}
        head = model.image_encoder.project.weight.detach().clone()
        freeze_trunks(model, frozen)
        images = torch.randint(0, 256, (4, 12, 12, 3), dtype=torch.uint8)
        tokens = torch.randint(5, 20, (4, 5))
        optimizer.zero_grad()
        scores = model(images, tokens, torch.full((4,), 5), images.flip(0))
        batch_classification_loss(scores, torch.arange(4), model.logit_scale).backward()
        optimizer.step()
        same = all(torch.equal(t, before[n]) for n, t in trunk.state_dict().items())
        return same, torch.equal(head, model.image_encoder.project.weight)

    assert step(frozen=True) == (True, False)
    assert step(frozen=False) == (False, False)


def test_only_matrices_and_kernels_decay():
    model = build_model(MODEL)
    settings = TrainingSettings(epochs=1, weight_decay=0.1, temperature_rate=10.0)
    decayed, kept, temperature = build_optimizer(model, settings).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert temperature["params"] == [model.logit_scale]
    assert (temperature["weight_decay"], temperature["rate"]) == (0.0, 10.0)
    assert all(p.ndim > 1 for p in decayed["params"])
