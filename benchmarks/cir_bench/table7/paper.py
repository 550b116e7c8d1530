"""Table 7 of Delmas et al., ICLR 2022: NVIDIA T4, ResNet-50 and LSTM, all of FashionIQ's validation split."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["GALLERIES", "PAPER", "QUERIES", "PaperRow"]

GALLERIES = {"dress": 3817, "shirt": 6346, "toptee": 5373}
"""Images of FashionIQ's validation split files."""

QUERIES = {"dress": 4034, "shirt": 4076, "toptee": 3922}
"""Queries under ARTEMIS' protocol: both orders of the captions of every pair."""


class PaperRow(NamedTuple):
    """A row of the table.

    Attributes:
        giga_macs: multiply-accumulates of a query-target pair, in 1e9; beyond the encoders for systems.
        mega_parameters: likewise, in 1e6.
        seconds: for the whole split on a T4, encoders included; None where the paper gives none.
    """

    giga_macs: float
    mega_parameters: float
    seconds: float | None


PAPER = {
    "encoders": PaperRow(8.35, 31.65, 114.09),
    "artemis": PaperRow(0.001, 1.31, 122.87),
    "tirg": PaperRow(0.002, 2.10, 118.20),
    "val": PaperRow(0.040, 27.83, None),
    "cosmo": PaperRow(2.110, 47.73, 133.84),
}
"""As printed, by system."""
