"""Recall of a model in training, under the data set's protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cir_eval.metrics import Outcome, judge, measure_of, metrics_of, ranking_of
from cir_eval.protocols.contract import Protocol
from cir_export.models import RetrievalModel
from cir_export.models.base import pairwise_scores
from cir_export.training.data import TextTokens
from cir_export.training.frozen import Kept
from cir_export.training.images import Images
from cir_export.training.loading import MeasuredPart, MeasuredSplit

__all__ = ["evaluate", "share_measured"]

_QUERIES = 64


@torch.no_grad()
def evaluate(
    model: RetrievalModel,
    split: MeasuredSplit,
    tokens: TextTokens,
    device: torch.device,
    halves: bool = False,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """Recall over a split's galleries as its protocol counts it, in float32.

    The model is put into evaluation mode.

    Args:
        model: to be measured.
        split: where.
        tokens: of the model.
        device: of the model.
        kept: rows of the model's pictures, while its trunks stay as they are.
        halves: also measure both halves of the queries, every other pair, for `two_way`.

    Returns:
        {"protocol", "split", "queries", "gallery", "measure": share, "recall": {"1": share, ...}}, recall and
        measure as means over the parts; "median_rank" over all queries, where each has one (a reference that
        is its own answer leaves the ranking, and has none); "other" for further metrics;
        "recall_at_1_by_kind" and "parts" where there are several.
    """
    model.eval()
    galleries = _Galleries(model, split.parts, device, kept)
    outcomes = [
        _outcomes(model, split.protocol, part, galleries, tokens, device, kept) for part in split.parts
    ]
    parts = [metrics_of(part) for part in outcomes]
    pooled = metrics_of([one for part in outcomes for one in part])
    mean = {name: float(np.mean([part[name] for part in parts])) / 100 for name in outcomes[0][0].values}
    kinds: dict[str, list[float]] = {}
    for part, judged in zip(split.parts, outcomes, strict=True):
        for query, outcome in zip(part.part.queries, judged, strict=True):
            kinds.setdefault(query.kind, []).append(outcome.values["R@1"] if query.kind else 0.0)
    found: dict[str, Any] = {
        "protocol": split.protocol.name,
        "split": split.name,
        "queries": sum(map(len, outcomes)),
        "gallery": sum(len(part.part.ids) for part in split.parts),
        "measure": round(measure_of(split.protocol, parts) / 100, 4),
        "recall": {str(k): round(mean[f"R@{k}"], 4) for k in split.protocol.ks},
        **{name: rank for name, rank in pooled.items() if name == "median_rank"},
    }
    other = {name: round(share, 4) for name, share in mean.items() if name[2:] not in found["recall"]}
    if other:
        found["other"] = other
    if len(parts) > 1:
        found["parts"] = {
            part.part.name: {f"R@{k}": round(of[f"R@{k}"] / 100, 4) for k in split.protocol.ks}
            for part, of in zip(split.parts, parts, strict=True)
        }
    if halves:
        found["halves"] = [_half(split, outcomes, number) for number in (0, 1)]
    if "" not in kinds:
        found["recall_at_1_by_kind"] = {kind: round(float(np.mean(kinds[kind])), 4) for kind in sorted(kinds)}
    return found


def two_way(log: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Two-way cross-validation (ARTEMIS, Table 3): chosen on one half, measured on the other.

    Args:
        log: the entries of a training.

    Returns:
        {"epochs": the two chosen, "measure": mean of both ways, "recall": likewise}; None where no half was
        measured.
    """
    epochs = [entry for entry in log if entry["event"] == "epoch" and "halves" in (entry["validation"] or {})]
    if not epochs or any(None in entry["validation"]["halves"] for entry in epochs):
        return None
    chosen, others = [], []
    for half in (0, 1):
        best = max(epochs, key=lambda entry: entry["validation"]["halves"][half]["measure"])
        chosen.append(best["epoch"])
        others.append(best["validation"]["halves"][1 - half])
    return {
        "epochs": chosen,
        "measure": round(float(np.mean([other["measure"] for other in others])), 4),
        "recall": {
            k: round(float(np.mean([other["recall"][k] for other in others])), 4) for k in others[0]["recall"]
        },
    }


def _half(split: MeasuredSplit, outcomes: list[list[Outcome]], half: int) -> dict[str, Any] | None:
    """Recall of every other pair, both of its orders together; None where a part has none of the half."""
    parts = []
    for part, judged in zip(split.parts, outcomes, strict=True):
        numbers: dict[str, int] = {}
        mine = [
            outcome
            for query, outcome in zip(part.part.queries, judged, strict=True)
            if numbers.setdefault(query.key.split(".")[0], len(numbers)) % 2 == half
        ]
        if not mine:
            return None
        parts.append(metrics_of(mine))
    return {
        "measure": round(measure_of(split.protocol, parts) / 100, 4),
        "recall": {
            str(k): round(float(np.mean([part[f"R@{k}"] for part in parts])) / 100, 4)
            for k in split.protocol.ks
        },
    }


def share_measured(found: dict[str, Any] | None) -> float:
    """The figure that epochs are chosen by: the authors' measure of the protocol."""
    return 0.0 if found is None else float(found["measure"])


class _Galleries:
    """The rows of galleries; those that several parts use are encoded once."""

    def __init__(
        self, model: RetrievalModel, parts: Sequence[MeasuredPart], device: torch.device, kept: Kept | None
    ) -> None:
        self._encode = partial(_encode, model.encode_gallery, device=device, kept=kept)
        self._galleries = Counter(id(part.images) for part in parts)
        self._uses = self._galleries + Counter(
            id(part.references) for part in parts if part.references is not part.images
        )
        self._made: dict[int, Tensor] = {}

    def among(self, images: Images) -> bool:
        """Whether these pictures are a gallery of some part."""
        return id(images) in self._galleries

    def rows(self, images: Images) -> Tensor:
        """float32 (N, ...) of all pictures."""
        made = self._made.get(id(images))
        if made is None:
            made = self._encode(images, range(len(images.images)))
            if self._uses[id(images)] > 1:
                self._made[id(images)] = made
        return made


def _outcomes(
    model: RetrievalModel,
    protocol: Protocol,
    measured: MeasuredPart,
    galleries: _Galleries,
    tokens: TextTokens,
    device: torch.device,
    kept: Kept | None,
) -> list[Outcome]:
    part = measured.part
    rows = galleries.rows(measured.images)
    outcomes: list[Outcome] = []
    references = _references(model, measured, rows, galleries, device, kept)
    for start, seen in zip(range(0, len(part.queries), _QUERIES), references, strict=False):
        queries = part.queries[start : start + _QUERIES]
        asked = [query.texts for query in queries]
        ids, lengths = tokens(asked)
        if kept is None:
            text = model.encode_text(ids.to(device), lengths)
        else:
            text = kept.texts(asked, ids.to(device), lengths)
        scores = pairwise_scores(model.compose(seen, text), rows).cpu()
        # A NaN ranks behind every number, equal scores by the smaller row, as every scorer of the SDK has it.
        order = torch.sort(-scores.nan_to_num(nan=-torch.inf), dim=1, stable=True).indices.numpy()
        outcomes += [
            judge(protocol, query, ranking_of(protocol, query, ranked))
            for query, ranked in zip(queries, order, strict=True)
        ]
    return outcomes


def _references(
    model: RetrievalModel,
    measured: MeasuredPart,
    rows: Tensor,
    galleries: _Galleries,
    device: torch.device,
    kept: Kept | None,
) -> Iterator[Tensor]:
    """What `compose` takes of the references of each chunk of queries, a chunk at a time."""
    wanted = [query.reference for query in measured.part.queries]
    chunks = [wanted[start : start + _QUERIES] for start in range(0, len(wanted), _QUERIES)]
    own = measured.references is measured.images
    as_rows = model.reference_is_gallery_row and (own or galleries.among(measured.references))
    seen = galleries.rows(measured.references) if as_rows and not own else rows
    for chunk in chunks:
        if as_rows:
            yield seen[torch.tensor(chunk, device=device)]
        elif "reference" not in model.composes:
            yield rows[: len(chunk)]  # not read
        else:
            yield _encode(model.encode_reference, measured.references, chunk, device, kept)


def _encode(
    encoder: Any, images: Images, rows: Sequence[int], device: torch.device, kept: Kept | None
) -> Tensor:
    parts = images.batches(rows) if kept is None else kept.batches(images, rows)
    return torch.cat([encoder(part.to(device)) for part in parts])
