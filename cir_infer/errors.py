"""The typed errors of the SDK.

Every message says what was found, what was expected and what to do about it. Commands turn a
`CirError` into one line on stderr and exit code 1 (2 for `UsageError`).
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "CheckpointError",
    "CirError",
    "DatasetError",
    "DeviceError",
    "ExportError",
    "GalleryError",
    "ImageError",
    "ScoringError",
    "TextError",
    "TrainingError",
    "UsageError",
]


class CirError(Exception):
    """Base of every error that the SDK raises on purpose."""


class UsageError(CirError):
    """An argument or a flag is wrong: a value out of range, a wrong type, a contradiction."""


class ImageError(CirError):
    """An image cannot be read, decoded or accepted."""


class TextError(CirError):
    """A modifier text cannot be used: empty, too long, or nothing in it that the model can read."""


class BundleError(CirError):
    """A bundle is missing, cut short, altered, of a newer format, or not a bundle."""


class GalleryError(CirError):
    """A gallery is missing, damaged, locked, empty, or was encoded by another bundle."""


class ScoringError(CirError):
    """Rows, terms or masks handed to a scorer do not fit its contract."""


class DeviceError(CirError):
    """A device or backend that was asked for by name cannot be used."""


class CheckpointError(CirError):
    """A checkpoint or one of its side files is not what it should be."""


class ExportError(CirError):
    """A model cannot be exported, or the exported graphs disagree with it."""


class TrainingError(CirError):
    """A training run cannot start or continue."""


class DatasetError(CirError):
    """A data set on disk is missing, incomplete or not in its published layout."""
