from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cir_export.models import Terms, build_model, pairwise_scores, unit
from cir_export.models.encoders.image import PixelNormalization
from cir_export.models.encoders.pooling import GeM, GridPool
from cir_export.models.encoders.resnet import RESNETS, ResNet, resnet_name
from cir_infer.errors import UsageError
from cir_infer.scoring.contract import QueryTerms
from cir_infer.scoring.reference import term_scores
from tests.export.tiny import batch, config

ABLATION = ("artemis", "is-only", "em-only", "image-only", "text-only", "late-fusion")


def l2(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


# ---- terms and scores


def test_artemis_is_the_formula_of_the_paper() -> None:
    """Eq. 1, 2 and 4 literally, in float64, one query and one row at a time."""
    torch.manual_seed(1)
    model = build_model(config()).double().eval()
    r, t, m = (
        l2(torch.randn(4, 24)).double(),
        l2(torch.randn(7, 24)).double(),
        l2(torch.randn(4, 24)).double(),
    )
    expected = torch.empty(4, 2, 7, dtype=torch.float64)
    with torch.no_grad():
        for query in range(4):
            a, b = (
                torch.softmax(attention.out(torch.relu(attention.hidden(m[query]))), 0)
                for attention in (model.attention_is, model.attention_em)
            )
            for row in range(7):
                expected[query, 0, row] = l2(a * r[query]) @ l2(a * t[row])
                expected[query, 1, row] = l2(model.transform(m[query])) @ l2(b * t[row])
        found = model.compose(r, m)
    terms = QueryTerms(found.numerators.float().numpy(), found.weights.float().numpy(), model.term_names)
    np.testing.assert_allclose(term_scores(terms, t.numpy()), expected, atol=1e-6)
    np.testing.assert_allclose(pairwise_scores(found, t), expected.sum(1), atol=2e-6)


def test_the_largest_weight_of_a_term_is_one() -> None:
    torch.manual_seed(2)
    model = build_model(config()).eval()
    # Peaked attention, as strong training makes it: most weights vanish, none overflows.
    nn.init.normal_(model.attention_is.out.weight, std=40.0)
    with torch.no_grad():
        terms = model.compose(l2(torch.randn(6, 24)), l2(torch.randn(6, 24)))
    assert terms.weights is not None and (terms.weights >= 0).all()
    np.testing.assert_array_equal(terms.weights.amax(-1), np.ones((6, 2), np.float32))
    assert torch.isfinite(terms.numerators).all()


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_weighted_scores_ignore_the_scale_of_terms_and_rows(seed: int, term: float, row: float) -> None:
    random = torch.Generator().manual_seed(seed)
    numerators, rows = torch.randn(3, 2, 8, generator=random), torch.randn(5, 8, generator=random)
    weights = torch.rand(3, 2, 8, generator=random) + 0.01
    scores = pairwise_scores(Terms(numerators, weights), rows)
    scaled = pairwise_scores(Terms(numerators * term, weights * term**2), rows * row)
    torch.testing.assert_close(scaled, scores, rtol=1e-4, atol=1e-5)


def test_zero_vectors_score_zero_and_have_finite_gradients() -> None:
    numerators = torch.zeros(1, 1, 4, requires_grad=True)
    weights = torch.ones(1, 1, 4, requires_grad=True)
    rows = torch.zeros(2, 4, requires_grad=True)
    scores = pairwise_scores(Terms(unit(numerators), weights), rows)
    scores.sum().backward()
    assert (scores == 0).all()
    for leaf in (numerators, weights, rows):
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()


def test_scores_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = build_model(config()).eval()
    images, tokens, lengths = batch()
    with torch.no_grad():
        exact = model(images, tokens, lengths, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(images, tokens, lengths, images)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0.05)


# ---- systems


@pytest.mark.parametrize("system", ABLATION)
def test_every_parameter_that_a_system_uses_learns(system: str) -> None:
    torch.manual_seed(0)
    model = build_model(config(system))
    images, tokens, lengths = batch()
    scores = model(images, tokens, lengths, images)
    nn.functional.cross_entropy(scores * model.logit_scale.exp(), torch.arange(5)).backward()
    learning = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    # Gallery rows come from the image encoder whatever the query reads.
    expected = {"logit_scale", "image_encoder"} | ({"text_encoder"} if "text" in model.composes else set())
    expected |= {"attention_is"} if "implicit_similarity" in model.term_names else set()
    expected |= {"attention_em", "transform"} if "explicit_matching" in model.term_names else set()
    assert learning == expected
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_the_ablation_shares_modules_and_names() -> None:
    names = [list(build_model(config(system)).state_dict()) for system in ABLATION]
    assert all(found == names[0] for found in names)


def test_late_fusion_image_only_and_text_only_are_cosines() -> None:
    torch.manual_seed(0)
    r, m, t = (l2(torch.randn(3, 24)) for _ in range(3))
    for system, query in (("late-fusion", l2(r + m)), ("image-only", r), ("text-only", m)):
        scores = pairwise_scores(build_model(config(system)).eval().compose(r, m), t)
        torch.testing.assert_close(scores, query @ t.T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"system": "artemiss"}, "artemiss"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"embedding_dim": 25}, "odd"),
        ({"embedding_dim": "24"}, "embedding_dim"),
        ({"colour": 3}, "colour"),
        ({"image": {"trunk": "resnet19"}}, "resnet19"),
        ({"image": {"trunk": "small", "pooling": "grid", "size": 40}}, "40"),
        ({"image": {"trunk": "small", "pooling": "median"}}, "median"),
        ({"image": {"mean": [0.5, 0.5]}}, "mean"),
        ({"image": []}, "image"),
        ({"text": {"encoder": "bigru"}}, "vocabulary_size"),
        ({"text": {"encoder": "gru", "vocabulary_size": 9}}, "gru"),
        ({"text": {"vocabulary_size": -4}}, "negative"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(config() | change)


# ---- encoders


@pytest.mark.parametrize(
    ("name", "entries", "million"), [("resnet18", 122, 11.690), ("resnet50", 320, 25.557)]
)
def test_resnets_have_torchvisions_names_and_sizes(name: str, entries: int, million: float) -> None:
    """Entries and parameters as torchvision counts them, whose models end in a linear layer of 1000."""
    with torch.device("meta"):
        trunk = ResNet(name)
    fc = 1000 * (trunk.channels[-1] + 1)
    assert len(trunk.state_dict()) + 2 == entries
    assert round((sum(p.numel() for p in trunk.parameters()) + fc) / 1e6, 3) == million
    names = set(trunk.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias", "layer4.1.conv2.weight"} <= names


def test_every_resnet_is_told_by_its_weights() -> None:
    for name in RESNETS:
        with torch.device("meta"):
            weights = ResNet(name).state_dict()
        assert resnet_name(weights) == name
    weights.pop("bn1.bias")
    assert resnet_name(weights) is None


def test_pixels_are_normalised_as_torchvision_does() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = PixelNormalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images)
    scaled = images.numpy().astype(np.float64).transpose(0, 3, 1, 2) / 255
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        np.testing.assert_allclose(found[:, channel], (scaled[:, channel] - mean) / std, atol=1e-6)


def test_gem_is_the_mean_of_cubes_and_grid_pooling_keeps_positions() -> None:
    maps = torch.rand(2, 3, 6, 6) - 0.3
    cubes = maps.double().clamp_min(1e-6) ** 3
    torch.testing.assert_close(GeM()(maps).double(), cubes.mean((2, 3)) ** (1 / 3), rtol=1e-5, atol=1e-7)
    pooled = GridPool(3)(maps).reshape(2, 3, 3, 3)
    torch.testing.assert_close(pooled[:, :, 0, 2], maps[:, :, :2, 4:].mean((2, 3)))


@pytest.mark.parametrize("encoder", ["bigru", "lstm"])
def test_a_text_does_not_depend_on_its_batch(encoder: str) -> None:
    torch.manual_seed(0)
    text = {"encoder": encoder, "vocabulary_size": 30, "word_dim": 10, "hidden": 12}
    model = build_model(config(text=text)).eval()
    _, tokens, lengths = batch()
    lengths[0], lengths[1] = 1, 9
    with torch.no_grad():
        together = model.encode_text(tokens, lengths)
        tokens_with_other_padding = tokens.clone()
        for row, length in enumerate(lengths):
            tokens_with_other_padding[row, length:] = 29
            alone = model.encode_text(tokens[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(alone[0], together[row])
        torch.testing.assert_close(model.encode_text(tokens_with_other_padding, lengths), together)


def test_the_lstm_takes_the_mean_of_the_paper_or_the_maximum_of_the_code() -> None:
    text = {"encoder": "lstm", "vocabulary_size": 30, "word_dim": 10, "hidden": 12}
    encoders = {}
    for pooling in ("max", "mean"):
        torch.manual_seed(3)
        encoders[pooling] = build_model(config(text={**text, "pooling": pooling})).eval().text_encoder
    tokens, lengths = torch.randint(0, 30, (2, 6)), torch.tensor([6, 2])
    with torch.no_grad():
        outputs, _ = encoders["mean"].rnn(encoders["mean"].embed(tokens), lengths)
        steps = [outputs[0], outputs[1, :2]]
        for pooling, pooled in (
            ("mean", [step.mean(0) for step in steps]),
            ("max", [step.amax(0) for step in steps]),
        ):
            encoder = encoders[pooling]
            expected = l2(encoder.project(torch.stack(pooled)))
            torch.testing.assert_close(encoder(tokens, lengths), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(UsageError, match=r"text\.pooling: .sum.; expected max or mean"):
        build_model(config(text={**text, "pooling": "sum"}))
    with pytest.raises(UsageError, match="belongs to encoder lstm"):
        build_model(config(text={**text, "encoder": "lstm-last", "pooling": "mean"}))


def test_the_lstm_reads_padding_when_told_that_it_is_text() -> None:
    torch.manual_seed(0)
    text = {"encoder": "lstm", "vocabulary_size": 30, "word_dim": 10, "hidden": 12}
    model = build_model(config(text=text)).eval()
    tokens, encoder = torch.randint(1, 30, (1, 6)), model.text_encoder
    padded = torch.cat([tokens, torch.zeros(1, 3, dtype=torch.int64)], 1)
    with torch.no_grad():
        outputs, _ = encoder.rnn.layer(encoder.embed(padded))
        expected = unit(encoder.project(outputs.amax(1)))
        torch.testing.assert_close(model.encode_text(padded, torch.tensor([9])), expected)
