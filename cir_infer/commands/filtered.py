"""What commands say of a filter that leaves nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cir_infer.errors import shown

if TYPE_CHECKING:
    from cir_infer.gallery.opened import OpenGallery

__all__ = ["nothing_matches"]


def nothing_matches(gallery: OpenGallery) -> str:
    """That, and what could have been asked for."""
    fields = [field.name for field in gallery.fields()]
    if not fields:
        return "no item matches --where: the items have no metadata"
    more = f" and {len(fields) - 10:,} more" if len(fields) > 10 else ""
    return f"no item matches --where; the items have the fields {', '.join(map(shown, fields[:10]))}{more}"
