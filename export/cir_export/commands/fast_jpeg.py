"""The part of `cir-export` that turns on scaled JPEG decoding: its flag, and what is printed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cir_infer.console.tables import format_table
from cir_infer.errors import UsageError
from cir_infer.processes.outputs import check_apart

__all__ = ["add_fast_jpeg_argument", "check_fast_jpeg", "make_fast_jpeg"]


def add_fast_jpeg_argument(parser: argparse.ArgumentParser) -> None:
    """Declare the flag."""
    parser.add_argument(
        "--fast-jpeg",
        action="store_true",
        help="make of the bundle MODEL one that decodes large JPEGs at a part of their size, gallery and "
        "queries alike; its embeddings are compared with the exact ones on your --images first",
    )


def check_fast_jpeg(options: Any, is_bundle: bool) -> None:
    """Refuse what does not go with the flag, before anything takes time.

    Raises:
        UsageError: MODEL is no bundle, there are no images to compare on, or another conversion is asked.
    """
    if not options.fast_jpeg:
        return
    for wrong, message in (
        (not is_bundle, "--fast-jpeg takes a bundle (.cir); export the model first, then give its bundle"),
        (options.images is None, "--fast-jpeg compares embeddings on images like yours; give --images DIR"),
        (
            options.precision != "float32" or options.tensorrt,
            "--fast-jpeg is a step of its own; convert or build plans from the bundle that it writes",
        ),
    ):
        if wrong:
            raise UsageError(message)


def make_fast_jpeg(options: Any) -> dict[str, Any]:
    """Write the bundle; unless --json was given, print the comparison.

    Returns:
        The answer, as plain values.
    """
    from cir_export.fast_jpeg import AGREEMENT, COSINE, scale_jpegs

    source = Path(options.model[0])
    target = Path(options.output or source.with_name(f"{source.stem}-fast-jpeg.cir"))
    check_apart(target, [source])
    report = scale_jpegs(source, target, options.images, progress=True)
    fidelity = report.fidelity
    if not options.json:
        rows = [
            ["cosine of image embeddings, mean", f"{fidelity.cosine_mean:.6f}", ""],
            ["cosine of image embeddings, worst", f"{fidelity.cosine_worst:.6f}", f">= {COSINE:g}"],
            ["score error, worst", f"{fidelity.score_error_worst:.1e}", ""],
            ["agreement of the first ten", f"{fidelity.top10_agreement:.2%}", f">= {AGREEMENT:.0%}"],
        ]
        header = ["scaled against whole JPEGs", "measured", "asked"]
        sizes = ", ".join(f"{count:,} at 1/{part}" for part, count in report.parts.items())
        print(f"\n{format_table(header, rows, right=[1])}\n  on {fidelity.images:,} images ({sizes})\n")
        print(f"wrote {report.path}; its gallery has to be indexed anew (cir-index), rows differ")
    return {
        "bundle": report.path,
        "fingerprint": report.manifest.fingerprint,
        "parity": report.manifest.parity["fast_jpeg"],
    }
