"""The generated scenes: families of near scenes, whose queries share a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cir_eval.datasets.scenes import ScenesDataset
from cir_export.training.configuration import DataSettings
from cir_export.training.sources.contract import FixedTriplets, Measured, Source, Triplet, chosen_protocol
from cir_infer.errors import TrainingError, shown

__all__ = ["open_scenes"]


def open_scenes(root: Path, settings: DataSettings) -> Source:
    """References in `data.reference_view`, targets and galleries in `data.view`; shaded where not set."""
    dataset = ScenesDataset.open(root)
    view = settings.view or "shaded"
    reference_view = settings.reference_view or view
    for one in (view, reference_view):
        if one not in dataset.views:
            raise TrainingError(
                f"{dataset.root} has the views {', '.join(dataset.views)}, not {shown(one)}; "
                "change data.view or generate that view"
            )
    across = reference_view != view
    name = f"{reference_view}-to-{view}" if across else view
    protocol = chosen_protocol(replace(settings, protocol=settings.protocol or f"scenes/{name}"))
    split = dataset.split("train")
    images = [split.image_path(id_, view) for id_ in split.ids]
    first_reference = 0
    if across:
        first_reference = len(images)
        images += [split.image_path(id_, reference_view) for id_ in split.ids]
    train = FixedTriplets(
        images,
        [Triplet(first_reference + split.rows[q.reference], (q.text,), split.rows[q.target])
         for q in split.queries],
        # A query without a family is one of its own.
        [-1 - i if q.family is None else q.family for i, q in enumerate(split.queries)],
    )  # fmt: skip
    validation, test = (
        Measured(name, tuple(protocol.load(dataset.root, name))) for name in ("validation", "test")
    )
    return Source("scenes", train, protocol, validation, test, view=view)
