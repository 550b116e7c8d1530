"""The bundle (`.cir`): the archive, its manifest, and the strict reading of both."""

from cir_infer.bundle.archive import Bundle, write_bundle

__all__ = ["Bundle", "write_bundle"]
