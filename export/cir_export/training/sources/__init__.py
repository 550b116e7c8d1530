"""Where training triplets come from: one module a kind of data set, `open_source` chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cir_export.training.configuration import DataSettings
from cir_export.training.sources import annotated, drawn, emoji, scenes, table
from cir_export.training.sources.contract import Source
from cir_infer.errors import TrainingError, shown

__all__ = ["SOURCES", "Source", "open_source"]

SOURCES: Mapping[str, Callable[[Path, DataSettings], Source]] = {
    "scenes": scenes.open_scenes,
    "emoji": emoji.open_emoji,
    "fashioniq": annotated.open_fashioniq,
    "cirr": annotated.open_cirr,
    "shoes": annotated.open_shoes,
    "css": annotated.open_css,
    "birds": annotated.open_birds,
    "fashion200k": drawn.open_fashion200k,
    "mitstates": drawn.open_mitstates,
    "table": table.open_table,
}
"""By `data.dataset`."""


def open_source(settings: DataSettings) -> Source:
    """The data set of a configuration.

    Raises:
        TrainingError: it is of an unknown kind, or an option does not fit it.
        DatasetError: it is missing, damaged or not in its published layout.
    """
    if settings.dataset not in SOURCES:
        raise TrainingError(
            f"data.dataset: {shown(settings.dataset)} is not known; expected one of {', '.join(SOURCES)}"
        )
    return SOURCES[settings.dataset](Path(settings.path), settings)
