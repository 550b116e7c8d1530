"""What a bundle says about itself, as plain values that JSON can hold."""

from __future__ import annotations

from typing import Any

from cir_infer.bundle.manifest import FeatureInput, Manifest

__all__ = ["bundle_facts"]


def bundle_facts(manifest: Manifest, known: int | None) -> dict[str, Any]:
    """The facts of a manifest.

    Args:
        manifest: of the bundle.
        known: tokens of its tokenizer, for bundles that do not state their vocabulary; None where no text
            is read.
    """
    image = manifest.image
    return {
        "system": manifest.system,
        "domain": manifest.provenance.get("domain"),
        "created_by": manifest.created_by,
        "fingerprint": manifest.fingerprint,
        "precision": manifest.precision,
        "dimension": manifest.embedding_dim,
        "tokens_per_item": manifest.tokens_per_item,
        "terms": list(manifest.terms),
        "weighted": manifest.weighted,
        "image": [image.size] if isinstance(image, FeatureInput) else [image.height, image.width, 3],
        "exif_orientation": None if isinstance(image, FeatureInput) else image.exif_orientation,
        "vocabulary": _vocabulary(manifest, known),
        "refines_without_image": manifest.refines_without_image,
        "graphs": sorted(manifest.graphs),
    }


def _vocabulary(manifest: Manifest, known: int | None) -> dict[str, Any] | None:
    """What kind of vocabulary texts are read with, and its size; bundles of today state it."""
    if manifest.text is None or known is None:
        return None
    stated = manifest.provenance.get("vocabulary")
    kind = "subwords" if manifest.text.unk_id is None else "words"
    return stated if isinstance(stated, dict) else {"kind": kind, "known": known}
