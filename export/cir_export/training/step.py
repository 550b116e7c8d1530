"""The loss of one batch, by one process or several."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cir_export.models import RetrievalModel
from cir_export.models.base import pairwise_scores
from cir_export.training.configuration import TrainingSettings
from cir_export.training.data import Batch
from cir_export.training.frozen import Kept
from cir_export.training.loss import batch_classification_loss, negative_set_loss
from cir_export.training.processes import ALONE, Processes
from cir_infer.errors import TrainingError, shown

__all__ = ["batch_loss", "step_of"]


def step_of(
    model: RetrievalModel, settings: TrainingSettings, kept: Kept | None, processes: Processes
) -> Callable[[Batch], Tensor]:
    """What gives the loss of a batch; of several processes, one that averages their gradients.

    Raises:
        TrainingError: the system's loss is not one that several processes share.
    """
    if processes.count == 1:
        return lambda batch: batch_loss(model, batch, settings, kept)
    whole = ("own_loss", "loss_of_pictures", "further_loss")
    if any(getattr(type(model), name) is not getattr(RetrievalModel, name) for name in whole):
        raise TrainingError(
            f"system {shown(model.system)} has a loss of its own, which several processes do not share; "
            "train it in one"
        )
    # What was frozen for this epoch is not waited for, so the wrapper is made anew in each.
    return DistributedDataParallel(_Step(model, settings, kept, processes), find_unused_parameters=True)


class _Step(nn.Module):
    """`batch_loss` as the module that gradients are averaged of."""

    def __init__(
        self,
        model: RetrievalModel,
        settings: TrainingSettings,
        kept: Kept | None,
        processes: Processes,
    ) -> None:
        super().__init__()
        self.model = model
        self._rest = (settings, kept, processes)

    def forward(self, batch: Batch) -> Tensor:
        """The process's part of the loss; the mean over the processes is the batch's."""
        return batch_loss(self.model, batch, *self._rest)


def batch_loss(
    model: RetrievalModel,
    batch: Batch,
    settings: TrainingSettings,
    kept: Kept | None = None,
    processes: Processes = ALONE,
) -> Tensor:
    """The system's own loss, or TIRG's over the batch's distinct targets: batch classification by default.

    Every image is encoded once, whatever its roles and by whichever process; by what trains alone where the
    batch holds kept rows. Of several processes each has the loss of its share of the queries, weighted so
    that the mean over the processes is the mean over the batch.
    """
    share = processes.share
    tokens, lengths, own, references = (
        part[share] for part in (batch.tokens, batch.lengths, batch.own, batch.references)
    )
    weight = len(own) * processes.count / len(batch.own)
    if not len(own):
        raise TrainingError(f"a batch has fewer queries than the {processes.count} processes")
    if kept is None:
        text = model.encode_text(tokens, lengths)
    else:
        text = kept.texts(batch.texts[share], tokens, lengths)
    if "reference" not in model.composes:
        rows = processes.gathered(model.encode_gallery, batch.images[batch.targets])
        seen = rows[own]  # not read
    elif model.reference_is_gallery_row:
        encoded = processes.gathered(model.encode_gallery, batch.images)
        of_pictures = model.loss_of_pictures(encoded, text)
        if of_pictures is not None:
            return of_pictures
        rows, seen = encoded[batch.targets], encoded[references]
    else:
        distinct, which = torch.unique(references, return_inverse=True)
        seen = model.encode_reference(batch.images[distinct])[which]
        excluded = batch.targets[None] == references[:, None]
        own_loss = model.own_loss(seen, text, batch.images[batch.targets], own, excluded)
        if own_loss is not None:
            return own_loss
        rows = processes.gathered(model.encode_gallery, batch.images[batch.targets])
    scores = pairwise_scores(model.compose(seen, text), rows)
    if settings.loss_set:
        loss = negative_set_loss(scores, own, model.logit_scale, settings.loss_set, settings.loss_sets)
    else:
        loss = batch_classification_loss(scores, own, model.logit_scale)
    further = model.further_loss(seen, text, rows[own])
    loss = loss if further is None else loss + further
    return loss if processes.count == 1 else loss * weight
