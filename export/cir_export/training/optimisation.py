"""The optimiser, its learning rate over time, and the trunks that wait."""

from __future__ import annotations

import math
from typing import Any

import torch

from cir_export.models import RetrievalModel
from cir_export.training.configuration import TrainingSettings

__all__ = ["build_optimizer", "freeze_trunks", "learning_rate"]

_MOMENTUM = 0.9


def build_optimizer(model: RetrievalModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW or SGD that decays matrices and kernels, but no bias, normalisation or temperature.

    Each group's "rate" is its learning rate as a multiple of the configured one.
    """
    scales = model.scales()
    apart = {id(p) for p in scales}
    trunk = {id(p) for part in model.trunks() for p in part.parameters()}
    if settings.trunk_rate == 1.0:
        trunk = set()
    groups: list[dict[str, Any]] = []
    for rate, inside in ((1.0, False), (settings.trunk_rate, True)):
        found = [p for p in model.parameters() if id(p) not in apart and (id(p) in trunk) == inside]
        for decay, matrix in ((settings.weight_decay, True), (0.0, False)):
            some = [p for p in found if (p.ndim > 1) == matrix]
            if some:
                groups.append({"params": some, "weight_decay": decay, "rate": rate})
    groups.append({"params": scales, "weight_decay": 0.0, "rate": settings.temperature_rate})
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=_MOMENTUM)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0.

    A linear rise over `warmup_steps`, then a half cosine to 0 at the last step, a halving every
    `halving_epochs` epochs of the frozen ones and again of the others, or a tenth every `tenth_steps` steps.
    """
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "cosine":
        decay = 0.5 * (1.0 + math.cos(math.pi * step / (settings.epochs * steps_per_epoch)))
    elif settings.schedule == "tenth":
        decay = 0.1 ** (step // settings.tenth_steps)
    else:
        epoch = step // steps_per_epoch
        epoch -= settings.frozen_epochs if epoch >= settings.frozen_epochs else 0
        decay = 0.5 ** (epoch // settings.halving_epochs)
    return settings.learning_rate * warmup * decay


def freeze_trunks(model: RetrievalModel, frozen: bool) -> None:
    """Put the model into training mode; what is frozen gets no gradient and keeps its statistics."""
    model.train()
    for trunk in model.trained_before():
        trunk.requires_grad_(not frozen)
        trunk.train(not frozen)
