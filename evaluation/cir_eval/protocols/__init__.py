"""Named evaluation protocols: one module a data set, each offering `PROTOCOLS`."""

from __future__ import annotations

import importlib

from cir_eval.protocols.contract import Protocol
from cir_infer.errors import UsageError, shown

__all__ = ["DATASETS", "protocol", "protocol_names"]

DATASETS = (
    "fashioniq",
    "cirr",
    "circo",
    "genecis",
    "icir",
    "lasco",
    "fashion200k",
    "shoes",
    "mitstates",
    "css",
    "birds",
    "scenes",
    "emoji",
)
"""Modules of this package that offer `PROTOCOLS: tuple[Protocol, ...]`; the names' part before the slash."""


def protocol(name: str) -> Protocol:
    """A protocol by name, e.g. "fashioniq/artemis"; the data set alone means its first protocol.

    Raises:
        UsageError: there is none of that name.
    """
    dataset = name.split("/", 1)[0]
    if dataset in DATASETS:
        for known in _of(dataset):
            if name in (known.name, dataset):
                return known
    raise UsageError(f"no protocol {shown(name)}; expected one of {', '.join(protocol_names())}")


def protocol_names() -> list[str]:
    """Every protocol's name."""
    return [known.name for dataset in DATASETS for known in _of(dataset)]


def _of(dataset: str) -> tuple[Protocol, ...]:
    found: tuple[Protocol, ...] = importlib.import_module(f"cir_eval.protocols.{dataset}").PROTOCOLS
    return found
