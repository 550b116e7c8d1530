"""The systems as PyTorch modules: against their formulas written out, and against each other's promises."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from cir_export.models import MODELS, build_model
from cir_export.models.base import pairwise_scores, unit
from cir_infer.errors import UsageError
from tests.export.systems.examples import CONFIGS, OTHERWISE, batch, example

SYSTEMS = sorted(CONFIGS)


def test_every_system_has_an_example() -> None:
    made = {name for name, model in MODELS.items() if not model.from_towers}
    assert {example(name).system for name in SYSTEMS} == made - OTHERWISE and made > OTHERWISE


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_a_query_does_not_depend_on_its_batch(name: str) -> None:
    model, (images, tokens, lengths) = example(name), batch(name)
    together = model(images, tokens, lengths, images)
    alone = torch.cat(
        [
            model(images[i : i + 1], tokens[i : i + 1, : lengths[i]], lengths[i : i + 1], images)
            for i in range(4)
        ]
    )
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)
    assert together.shape == (4, 4)
    assert (together.abs() <= len(model.term_names) + 1e-5).all()  # a cosine each


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_what_stands_beyond_a_text_is_not_read(name: str) -> None:
    model, (images, tokens, lengths) = example(name), batch(name)
    other = tokens.clone()
    for row, length in enumerate(lengths):
        other[row, length:] = 0
    torch.testing.assert_close(
        model(images, tokens, lengths, images), model(images, other, lengths, images), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_queries_read_what_the_system_says(name: str) -> None:
    model, (images, tokens, lengths) = example(name), batch(name)
    scores = model(images, tokens, lengths, images)
    by_image = not torch.allclose(model(images.flip(0), tokens, lengths, images), scores, atol=1e-6)
    changed = model(images, tokens.flip(1), lengths, images)
    assert by_image == ("reference" in model.composes)
    assert (not torch.allclose(changed, scores, atol=1e-6)) == ("text" in model.composes)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_step_of_training_reaches_every_weight(name: str) -> None:
    model, (images, tokens, lengths) = example(name).train(), batch(name)
    reference, text = model.encode_reference(images), model.encode_text(tokens, lengths)
    loss = model.own_loss(reference, text, images.flip(0))
    if loss is None:
        rows = model.encode_gallery(images.flip(0))
        scores = pairwise_scores(model.compose(reference, text), rows)
        loss = functional.cross_entropy(scores * model.logit_scale.exp(), torch.arange(4))
        further = model.further_loss(reference, text, rows)
        loss = loss if further is None else loss + further
    loss.backward()
    unused = {key for key, p in model.named_parameters() if p.grad is None}
    expected = {"logit_scale"} if name == "sac" else set(model.unused)
    assert {key.split(".")[0] for key in unused} == expected
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@torch.no_grad()
def test_tirg_is_its_formula() -> None:
    model = example("tirg-raw")
    r, m = torch.randn(3, 20), torch.randn(3, 20)
    both = torch.cat([r, m], 1)

    def branch(layers: torch.nn.Sequential) -> torch.Tensor:
        norm = layers[0]
        x = (both - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias
        for layer in layers[1:]:
            x = x.clamp_min(0) if isinstance(layer, torch.nn.ReLU) else x @ layer.weight.T + layer.bias
        return x

    q = 1.0 * torch.sigmoid(branch(model.gate)) * r + 10.0 * branch(model.residual)
    terms = model.compose(r, m)
    torch.testing.assert_close(terms.numerators[:, 0], functional.normalize(q), atol=1e-6, rtol=1e-5)
    rows = 7 * torch.randn(5, 20)
    expected = functional.cosine_similarity(q[:, None], rows[None], dim=2)
    torch.testing.assert_close(pairwise_scores(terms, rows), expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_relationship_is_a_mean_over_all_pairs() -> None:
    model = example("relationship")
    cells, text = torch.randn(2, 16, 9), torch.randn(2, 20)
    objects = torch.cat([cells.transpose(1, 2), model.places.expand(2, -1, -1)], 2)
    pairs = [
        model.pair(model.first(objects[:, i]) + model.second(objects[:, j]) + model.text(text))
        for i in range(9)
        for j in range(9)
    ]
    expected = model.out(torch.stack(pairs).mean(0))
    torch.testing.assert_close(model.compose_vector(cells, text), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_operator_and_hashing_are_matrices_of_the_text() -> None:
    r, m = torch.randn(3, 20), torch.randn(3, 20)
    model = example("attribute-as-operator")
    for i in range(3):
        operator = torch.eye(20) + (model.coefficients(m[i])[:, None, None] * model.operators).sum(0)
        expected = operator @ r[i]
        torch.testing.assert_close(model.compose_vector(r, m)[i], expected, atol=1e-5, rtol=1e-4)
    model = example("parameter-hashing")
    pooled = torch.randn(3, model.slots.shape[1])
    candidates = model.candidates(m)
    for i in range(3):
        matrix = torch.empty(model.slots.shape)
        for row, column in torch.cartesian_prod(*map(torch.arange, model.slots.shape)).tolist():
            matrix[row, column] = candidates[i, model.slots[row, column]] * model.signs[row, column]
        found = model.compose_vector(pooled, m)[i]
        torch.testing.assert_close(found, matrix @ pooled[i], atol=1e-4, rtol=1e-4)


def test_attribute_as_operator_starts_as_the_identity() -> None:
    model = build_model(CONFIGS["attribute-as-operator"])
    r = torch.randn(2, 20)
    assert torch.equal(model.compose_vector(r, torch.randn(2, 20)), r)


@torch.no_grad()
def test_sac_attends_as_written() -> None:
    model = example("sac")
    level, positions = model.fine, model.fine.positions
    maps, text = torch.randn(2, level.channels, 12, 12), torch.randn(2, 14)
    assert positions == 144
    v = maps.flatten(2)
    q, k, values = (layer(maps).flatten(2) for layer in (level.queries, level.keys, level.values))
    expected = torch.empty_like(v)
    for p in range(positions):
        weights = torch.softmax(
            torch.stack([(q[:, :, p] * k[:, :, s]).sum(1) for s in range(positions)], 1), 1
        )
        expected[:, :, p] = level.beta * (values * weights[:, None]).sum(2) + v[:, :, p]
    attended = level.attend(maps)
    torch.testing.assert_close(attended, expected.flatten(1), atol=1e-5, rtol=1e-4)
    saliency = (level.text(text)[:, :, None] * expected).sum(1) / 8.0
    salient = (torch.softmax(saliency, 1)[:, None] * expected).sum(2)
    gem = expected.clamp_min(1e-6).pow(3).mean(2).pow(1 / 3)
    out = gem + level.gamma * salient
    torch.testing.assert_close(level.of_reference(attended, text), out, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_show_and_tell_reads_no_word_beyond_its_limit() -> None:
    model = build_model({**CONFIGS["show-and-tell"], "max_words": 4}).eval()
    images, tokens, lengths = batch("show-and-tell")
    short = model(images, tokens[:, :4], lengths.clamp_max(4), images)
    torch.testing.assert_close(model(images, tokens, lengths, images), short)


@torch.no_grad()
def test_combiner_is_its_formula() -> None:
    model = example("clip4cir-combiner")
    r, m = torch.randn(3, 24), torch.randn(3, 24)
    c = torch.cat([model.combiner.text(m).relu(), model.combiner.image(r).relu()], 1)
    s = model.combiner.scalar_out(model.combiner.scalar_hidden(c).relu()).sigmoid()
    q = model.combiner.out(model.combiner.hidden(c).relu()) + s * m + (1 - s) * r
    terms = model.compose(r, m)
    torch.testing.assert_close(terms.numerators[:, 0], unit(q), atol=1e-6, rtol=1e-5)
    assert terms.weights is not None
    assert (terms.weights == 1).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"system": "gpt"}, "system 'gpt' is not known"),
        ({"score": "dots"}, "model.score: 'dots'"),
        ({"layers": 3}, "unknown key 'layers'"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"system": "film", "blocks": 0}, "model.blocks: 0"),
        ({"system": "mrn", "blocks": 0}, "model.blocks: 0"),
        ({"system": "relationship", "cells": 0}, "cells"),
        ({"system": "maaf", "heads": 4, "cells": 5, "text": {"vocabulary_size": 9}}, "5 do not divide"),
        ({"system": "attribute-as-operator", "operators": 0}, "operators"),
        ({"system": "parameter-hashing", "candidates": 0}, "candidates"),
        ({"system": "film", "image": {"features": 8}}, "convolutional maps"),
        ({"system": "sac", "text": {"vocabulary_size": 9, "hidden": 0}}, "size is 0"),
        ({"system": "sac", "text": {"vocabulary_size": 9}, "temperature": 0.0}, "temperature"),
        ({"system": "show-and-tell", "text": {"vocabulary_size": 9}}, "lstm-last"),
        ({"system": "clip4cir-sum", "image": {}}, "unknown key"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_model({**CONFIGS["tirg"], **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_layers": (1, 1)}, "vision_layers"),
        ({"image_size": 65}, "multiple of 32"),
        ({"vision_heads": 3}, "multiple of its heads"),
        ({"activation": "relu"}, "activation"),
        ({"text_layers": 0}, "size is 0"),
    ],
)
def test_clip_sizes_that_do_not_fit_are_refused(change: dict[str, object], said: str) -> None:
    config = CONFIGS["clip4cir-combiner"]
    with pytest.raises(UsageError, match=said):
        build_model({**config, "clip": {**config["clip"], **change}})
