"""The bundle whose rows a gallery has, looked for where people keep it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from cir_infer.bundle.archive import Bundle
from cir_infer.bundle.manifest import Manifest
from cir_infer.bundle.orientation import orientation_of_rows
from cir_infer.errors import CirError, shown

__all__ = ["bundle_beside", "described"]

_MOST = 50
"""Files of a folder that are looked into; of each its manifest is read."""


def bundle_beside(fingerprint: str, folders: Iterable[Path]) -> Bundle | None:
    """A bundle with this fingerprint in one of the folders, for a message; None where none is found.

    Photos may be turned otherwise than it says.
    """
    for folder in dict.fromkeys(folders):
        try:
            files = sorted(islice(folder.glob("*.cir"), _MOST))
        except OSError:
            continue
        for path in files:
            try:
                bundle = Bundle(path)
            except CirError:  # also what is no file
                continue
            if bundle.manifest.fingerprint == fingerprint:
                return bundle
            if orientation_of_rows(bundle.manifest, fingerprint) is not None:
                return bundle
    return None


def described(path: object, manifest: Manifest) -> str:
    """A bundle in a message: where it is, and what tells it from another export of the same model."""
    return f"{shown(Path(str(path)))} ({manifest.system}, {manifest.precision})"
