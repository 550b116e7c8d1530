"""The optimiser, its learning rate over time, and the trunks that wait."""

from __future__ import annotations

import math

import torch

from cir_export.models import RetrievalModel
from cir_export.training.configuration import TrainingSettings

__all__ = ["build_optimizer", "freeze_trunks", "learning_rate"]


def build_optimizer(model: RetrievalModel, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, but no bias, normalisation or temperature.

    Each group's "rate" is its learning rate as a multiple of the configured one.
    """
    others = [p for p in model.parameters() if p is not model.logit_scale]
    return torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": settings.weight_decay, "rate": 1.0},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0, "rate": 1.0},
            {"params": [model.logit_scale], "weight_decay": 0.0, "rate": settings.temperature_rate},
        ],
        lr=settings.learning_rate,
    )


def learning_rate(settings: TrainingSettings, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0.

    A linear rise over `warmup_steps`, then a half cosine to 0 at the last step or a halving every
    `halving_epochs` epochs.
    """
    warmup = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    if settings.schedule == "cosine":
        decay = 0.5 * (1.0 + math.cos(math.pi * step / (settings.epochs * steps_per_epoch)))
    else:
        decay = 0.5 ** (step // steps_per_epoch // settings.halving_epochs)
    return settings.learning_rate * warmup * decay


def freeze_trunks(model: RetrievalModel, frozen: bool) -> None:
    """Put the model into training mode; frozen trunks get no gradient and keep their statistics."""
    model.train()
    for trunk in model.trunks():
        trunk.requires_grad_(not frozen)
        trunk.train(not frozen)
