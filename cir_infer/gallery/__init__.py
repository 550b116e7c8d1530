"""The gallery: rows on disk under a transactional catalogue. See docs/gallery.md."""

from __future__ import annotations

from cir_infer.gallery.gallery import Gallery
from cir_infer.gallery.snapshot import Snapshot

__all__ = ["Gallery", "Snapshot"]
