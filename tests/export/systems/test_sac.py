"""SAC's losses in both forms, negatives, and the settings of its ablation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cir_export.models import build_model
from cir_export.models.sac import Sac
from cir_infer.errors import UsageError
from tests.export.systems.examples import CONFIGS, batch, example


def sac(**changes: Any) -> Sac:
    torch.manual_seed(0)
    model = build_model({**CONFIGS["sac"], **changes})
    assert isinstance(model, Sac)
    return model


def features(count: int, targets: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    composed = torch.randn(count, 20, generator=random).requires_grad_()
    return composed, torch.randn(targets, 20, generator=random).requires_grad_()


OWN = torch.tensor([0, 1, 1, 2])


def test_every_target_but_its_own_and_its_reference_is_a_negative() -> None:
    composed, target = features(4, 3)
    excluded = torch.zeros(4, 3, dtype=torch.bool)
    excluded[3, 0] = True  # the fourth query's reference is the first target
    found = sac()._triplet(composed, target, OWN, excluded)
    expected = []
    for query in range(4):
        d = [torch.linalg.vector_norm(composed[query] - target[t]) for t in range(3)]
        others = [t for t in range(3) if t != OWN[query] and not excluded[query, t]]
        expected.append(torch.log(1 + sum(torch.exp(d[OWN[query]] - d[t]) for t in others)))
    torch.testing.assert_close(found, torch.stack(expected).mean())
    # Of target 0 the fourth query learns nothing.
    (gradient,) = torch.autograd.grad(found, target)
    only = [sac()._triplet(composed[:3], target, OWN[:3], excluded[:3]) * 3 / 4]
    torch.testing.assert_close(gradient[0], torch.autograd.grad(only[0], target)[0][0])


def test_the_papers_form_takes_hard_and_random_negatives_in_turn() -> None:
    composed, target = features(4, 3)
    model = sac(form="paper")
    excluded = torch.zeros(4, 3, dtype=torch.bool)
    distances = torch.cdist(composed, target)
    own = distances.gather(1, OWN[:, None])
    allowed = torch.ones(4, 3, dtype=torch.bool).scatter(1, OWN[:, None], False)
    hardest = distances.masked_fill(~allowed, torch.inf).amin(1, keepdim=True)
    model.out[0].num_batches_tracked.fill_(1)
    hard = model._triplet(composed, target, OWN, excluded)
    torch.testing.assert_close(hard, functional.softplus(own - hardest).mean())
    model.out[0].num_batches_tracked.fill_(2)
    drawn = {round(model._triplet(composed, target, OWN, excluded).item(), 5) for _ in range(40)}
    assert len(drawn) > 1 and max(drawn) <= hard.item() + 1e-5
    # A query whose every other target is its reference has no negative, and no loss.
    assert float(model._triplet(composed[:1], target, OWN[:1], allowed[:1])) == 0


def test_equation_16_is_the_sum_of_two_means_in_the_papers_form() -> None:
    composed, target = features(4, 3)
    losses = {}
    for form in ("paper", "stable"):
        model = sac(form=form)
        losses[form] = model._discrimination(composed, target)
        real, made = (torch.sigmoid(model.discriminator(part)) for part in (target, composed))
        summed = -real.log().mean() - (1 - made).log().mean()
    torch.testing.assert_close(losses["paper"], summed)
    torch.testing.assert_close(losses["stable"], summed / 2)


def test_equation_17_reaches_target_and_text_in_the_papers_form() -> None:
    composed, target = features(3, 3)
    _, text = features(3, 3)
    model = sac(form="paper")
    loss = model._consistency(composed, target, text)
    norms = [torch.linalg.vector_norm(model.to_target(composed) - target, dim=1).mean()]
    norms += [torch.linalg.vector_norm(model.to_text(composed) - text, dim=1).mean()]
    torch.testing.assert_close(loss, 0.1 * norms[0] + norms[1])
    assert all(part.abs().max() > 0 for part in torch.autograd.grad(loss, (target, text)))
    stable = sac()._consistency(composed, target, text)
    assert torch.autograd.grad(stable, (target, text), allow_unused=True) == (None, None)


def test_a_level_has_its_own_temperature_and_width() -> None:
    model = sac(temperatures=[1.0, 8.0], attention_dim=0)
    assert (model.fine.temperature, model.coarse.temperature) == (1.0, 8.0)
    for level in (model.fine, model.coarse):
        assert level.queries.out_channels == level.keys.out_channels == level.channels


ABLATION = [
    {"levels": "fine"}, {"levels": "coarse"}, {"attention": False}, {"discriminator": 0.0},
    {"consistency": 0.0}, {"composition": "multiply"}, {"composition": "concatenate"}, {"form": "paper"},
]  # fmt: skip


@pytest.mark.parametrize("changes", ABLATION, ids=str)
def test_every_part_of_the_ablation_trains_all_of_its_weights(changes: dict[str, Any]) -> None:
    model = example("sac", {"sac": {**CONFIGS["sac"], **changes}}).train()
    images, tokens, lengths = batch("sac")
    reference, text = model.encode_reference(images), model.encode_text(tokens, lengths)
    loss = model.own_loss(reference, text, images.flip(0))
    assert loss is not None
    loss.backward()
    unused = {name for name, weight in model.named_parameters() if weight.grad is None}
    idle = {"logit_scale"}
    if "levels" in changes:  # of one level there is no second step, and the coarse map is not read
        idle |= {name for name in unused if name.startswith(("aggregate.layer.weight_hh", "trunk.stages.2"))}
    assert unused <= idle
    assert model.compose(reference, text).numerators.shape == (4, 1, 20)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": "literal"}, "model.form: 'literal'; expected one of stable, paper"),
        ({"levels": "all"}, "model.levels"),
        ({"composition": "sum"}, "model.composition"),
        ({"temperatures": [1.0]}, "two, of the fine and the coarse level"),
        ({"temperatures": [1.0, 0.0]}, "above 0"),
        ({"consistency": -0.1}, "weight of at least 0"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        sac(**changes)
