"""Whether photos are turned upright as their EXIF tag says: what the bundle says, or what its user says."""

from __future__ import annotations

from dataclasses import replace

from cir_infer.bundle.manifest import Manifest, PixelInput
from cir_infer.errors import UsageError, shown

__all__ = ["orientation_of_rows", "oriented"]


def oriented(manifest: Manifest, exif_orientation: bool | None) -> Manifest:
    """The manifest with photos turned as its user wants them; None leaves it as it is.

    Rows of turned photos are others, so the fingerprint changes with it.

    Raises:
        UsageError: the bundle takes pre-extracted features.
    """
    if exif_orientation is None:
        return manifest
    if not isinstance(manifest.image, PixelInput):
        raise UsageError(
            f"exif_orientation={shown(exif_orientation)}: this bundle takes pre-extracted features, which "
            "have no EXIF orientation; leave it out"
        )
    return replace(manifest, image=replace(manifest.image, exif_orientation=exif_orientation))


def orientation_of_rows(manifest: Manifest, fingerprint: str | None) -> bool | None:
    """How the photos behind a gallery's rows were turned, where that is not what the bundle says.

    Args:
        manifest: of the bundle.
        fingerprint: of the gallery; None where nobody said.
    """
    image = manifest.image
    if fingerprint is None or not isinstance(image, PixelInput) or manifest.fingerprint == fingerprint:
        return None
    turned = not image.exif_orientation
    return turned if oriented(manifest, turned).fingerprint == fingerprint else None
