"""The part of `cir-export` that says something else about a bundle and leaves its graphs as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cir_export.targets import check_target
from cir_infer.errors import ExportError, UsageError
from cir_infer.processes.outputs import check_apart

__all__ = ["check_restating", "restate"]


def check_restating(options: Any, is_bundle: bool) -> None:
    """Refuse what does not go with --exif-orientation or --domain of a bundle, before anything takes time.

    Raises:
        UsageError: another conversion is asked as well, or no other name is given.
    """
    if not is_bundle or (options.exif_orientation is None and options.domain is None):
        return
    if options.precision != "float32" or options.tensorrt or options.fast_jpeg:
        raise UsageError(
            "--exif-orientation and --domain of a bundle are a step of their own; convert or build plans "
            "from the bundle that it writes"
        )
    if options.output is None:
        raise UsageError("--exif-orientation and --domain of a bundle write another one; name it with -o")


def restate(options: Any) -> dict[str, Any]:
    """Write a copy of the bundle MODEL that reads photographs otherwise, or names its domain.

    Returns:
        The answer, as plain values; `note` says whether galleries stay valid.

    Raises:
        UsageError: the bundle reads features and no photographs, or is to be written over itself.
        ExportError: the file cannot be written.
    """
    from cir_infer.bundle import Bundle, write_bundle
    from cir_infer.bundle.manifest import PixelInput

    bundle, target = Bundle(options.model[0]), Path(options.output)
    check_target(target)
    check_apart(target, [bundle.path])
    manifest = bundle.manifest
    if options.exif_orientation is not None:
        if not isinstance(manifest.image, PixelInput):
            raise UsageError(
                f"{bundle.path} takes pre-extracted features; leave --exif-orientation and "
                "--no-exif-orientation out"
            )
        manifest = replace(manifest, image=replace(manifest.image, exif_orientation=options.exif_orientation))
    if options.domain is not None:
        manifest = replace(manifest, provenance={**manifest.provenance, "domain": options.domain})
    try:
        written = write_bundle(target, manifest, bundle.contents(), progress=True)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    same = written.fingerprint == bundle.manifest.fingerprint
    note = (
        ""
        if same
        else "; its gallery has to be indexed anew (cir-index), photographs with an EXIF tag differ"
    )
    return {"bundle": target, "fingerprint": written.fingerprint, "note": note}
