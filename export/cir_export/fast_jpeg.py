"""A bundle that decodes JPEGs at a part of their size, after its embeddings were held against the exact ones.

A catalogue's photographs are several times as large as what an encoder sees. A decoder that scales
(libjpeg's, Pillow's `draft`) skips part of the work, and the pixels differ a little: they are averaged first
and resized then. Gallery and queries must be prepared alike, so it is the bundle that says so.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from cir_export.precision.calibration import samples_for
from cir_export.precision.fidelity import Fidelity, measure_fidelity, see
from cir_export.targets import check_target
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import Manifest, PixelInput, ScaledJpeg
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.engine import Engine
from cir_infer.errors import BundleError, ExportError, UsageError
from cir_infer.inputs.preprocess import decode
from cir_infer.processes.outputs import scratch_beside

__all__ = ["AGREEMENT", "COSINE", "FastJpegReport", "scale_jpegs"]

COSINE, AGREEMENT = 0.999, 0.95
"""What is asked: the smallest cosine of an image's two embeddings, the mean agreement of the first ten."""


@dataclass(frozen=True)
class FastJpegReport:
    """What was written, and how close its embeddings are.

    Attributes:
        path: the bundle.
        manifest: as written.
        parts: how many of the images were decoded at 1/1, 1/2, 1/4, 1/8, by 1, 2, 4, 8.
        fidelity: against the bundle that decodes whole images.
    """

    path: Path
    manifest: Manifest
    parts: dict[int, int]
    fidelity: Fidelity


def scale_jpegs(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    progress: bool = False,
) -> FastJpegReport:
    """Writes a bundle with scaled JPEG decoding, if it stays close to the one without.

    Needs no torch.

    Args:
        source: the bundle.
        target: where to; an existing file is replaced at once or not at all.
        folder: the user's images, the first 48 by name.
        progress: say how far it is.

    Raises:
        UsageError: the bundle reads no images, never resizes them or has it already; or no image of the
            folder is a JPEG large enough.
        ExportError: the embeddings differ by more than `COSINE` and `AGREEMENT` allow, or the file cannot
            be written.
    """
    bundle, path = Bundle(source), Path(target)
    check_target(path)
    scaled = _with_step(bundle)
    samples = samples_for(bundle, folder, None)
    assert isinstance(scaled.image, PixelInput)
    parts = Counter(decode(image, scaled.image).part for image in samples.images)
    if not any(part > 1 for part in parts):
        raise UsageError(
            f"none of the {len(samples.images)} images of {folder} is a JPEG that this bundle could decode "
            "at half its size or less; --fast-jpeg would change nothing that can be measured on them"
        )
    members = bundle.contents()
    try:
        with scratch_beside(path) as scratch:
            unverified = scratch / "unverified.cir"
            write_bundle(unverified, scaled, members, progress)
            with Engine(bundle, device="cpu") as engine:
                before = see(engine, samples, progress)
            with Engine(unverified, device="cpu") as engine:
                fidelity = measure_fidelity(before, see(engine, samples, progress), samples)
        _check(fidelity)
        report = {"parts": {str(part): count for part, count in sorted(parts.items())}, **fidelity.to_json()}
        # The folder's name, not its place on this machine.
        report["source"] = Path(samples.source).name
        final = replace(scaled, parity={**scaled.parity, "fast_jpeg": report})
        manifest = write_bundle(path, final, members, progress)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    return FastJpegReport(path, manifest, dict(sorted(parts.items())), fidelity)


def _with_step(bundle: Bundle) -> Manifest:
    manifest = bundle.manifest
    image = manifest.image
    if not isinstance(image, PixelInput):
        raise UsageError(f"{bundle.path} takes pre-extracted features; there is nothing to decode")
    if any(isinstance(step, ScaledJpeg) for step in image.steps):
        raise UsageError(f"{bundle.path} decodes JPEGs at a part of their size already")
    scaled = replace(manifest, image=replace(image, steps=(ScaledJpeg(), *image.steps)))
    try:
        read_manifest(scaled.to_json())
    except BundleError as error:
        raise UsageError(
            f"{bundle.path} needs every pixel of an image before it resizes it ({error})"
        ) from error
    return scaled


def _check(fidelity: Fidelity) -> None:
    cosine, agreement = fidelity.cosine_worst, fidelity.top10_agreement
    if cosine is None or agreement is None:
        raise ExportError("the embeddings are not finite; export the model again")
    failed = []
    if not cosine >= COSINE:
        failed.append(f"the worst cosine of an image's embedding is {cosine:.5f} and {COSINE:g} is asked")
    if not agreement >= AGREEMENT:
        failed.append(f"the agreement of the first ten is {agreement:.2%} and {AGREEMENT:.0%} is asked")
    if failed:
        raise ExportError(
            "scaled JPEG decoding changes too much and no bundle was written: "
            f"{' and '.join(failed)}, on {fidelity.images} images"
        )
