"""Recall of a model on a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cir_eval.recall import ranks_of_targets, recall_at
from cir_export.models import RetrievalModel
from cir_export.models.base import pairwise_scores
from cir_export.training.data import QuerySet

__all__ = ["evaluate"]

_BATCH = 256


@torch.no_grad()
def evaluate(model: RetrievalModel, queries: QuerySet, device: torch.device) -> dict[str, Any]:
    """Recall over the split's whole gallery, each query's own reference excluded, in float32.

    The model is put into evaluation mode.

    Returns:
        {"queries", "gallery", "recall": {"1": share, "5": .., "10": ..}, "recall_at_1_by_kind": {...}}.
    """
    model.eval()
    rows = _encode(model.encode_gallery, queries.images, device)
    scores = []
    for part in torch.split(torch.arange(len(queries)), _BATCH):
        reference_rows = queries.references[part]
        if model.reference_is_gallery_row:
            references = rows[reference_rows.to(device)]
        else:
            references = _encode(model.encode_reference, queries.images[reference_rows], device)
        text = model.encode_text(queries.tokens[part].to(device), queries.lengths[part].to(device))
        scores.append(pairwise_scores(model.compose(references, text), rows).cpu())
    ranks = ranks_of_targets(
        torch.cat(scores).numpy(), queries.targets.numpy(), excluded=queries.references.numpy()
    )
    kinds = np.array(queries.kinds)
    return {
        "queries": len(queries),
        "gallery": len(queries.images),
        "recall": {str(k): round(v, 4) for k, v in recall_at(ranks).items()},
        "recall_at_1_by_kind": {
            str(kind): round(recall_at(ranks[kinds == kind])[1], 4) for kind in np.unique(kinds)
        },
    }


def _encode(encoder: Any, images: Tensor, device: torch.device) -> Tensor:
    return torch.cat([encoder(part.to(device)) for part in torch.split(images, _BATCH)])
