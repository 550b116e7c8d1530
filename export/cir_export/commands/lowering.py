"""The part of `cir-export` that writes bundles in bfloat16, float16 and int8: flags, and what is printed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cir_export.hub import is_hub_name
from cir_export.plans import is_bundle
from cir_infer.console.common import print_json
from cir_infer.console.figures import change
from cir_infer.console.tables import format_table
from cir_infer.errors import UsageError, shown

if TYPE_CHECKING:
    from cir_export.precision import ConversionReport
    from cir_export.precision.blame import LayerError
    from cir_export.precision.fidelity import Fidelity
    from cir_export.precision.recall import RecallDrift
    from cir_infer.bundle.manifest import Manifest

__all__ = [
    "add_lowering_arguments",
    "check_images",
    "check_lowering",
    "check_names",
    "default_output",
    "list_layers",
    "lower",
    "lowered_json",
    "refining",
    "shown_lowering",
]

_LAYERS_SHOWN = 8


def add_lowering_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    group = parser.add_argument_group("precision (docs/precision.md)")
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="of the encoders; MODEL may then be a float32 bundle, and no torch is needed (default float32)",
    )
    group.add_argument(
        "--int8-for",
        choices=("cpu", "tensorrt"),
        help="what will run int8: ONNX Runtime on a CPU, or TensorRT; each wants another form (default cpu)",
    )
    group.add_argument(
        "--emulate",
        action="store_true",
        help="judge bfloat16 by its roundings, where this processor does not compute it",
    )
    group.add_argument(
        "--calibrate", metavar="DIR", help="images like those of your gallery, for int8's ranges: hundreds"
    )
    group.add_argument(
        "--labelled", metavar="DATA", type=Path, help="a labelled data set: its recall decides what passes"
    )
    group.add_argument("--protocol", metavar="NAME", help="its protocol, see cir-bench accuracy --protocols")
    group.add_argument("--split", metavar="NAME", help="its split; default: the one that the authors report")
    group.add_argument(
        "--allow-loss", type=float, metavar="POINTS", help="points of R@10 that may be lost (default 0.5)"
    )
    group.add_argument(
        "--keep-float32",
        metavar="LAYER",
        nargs="+",
        default=[],
        help="layers that stay float32: names, beginnings of names up to a dot, or patterns with * and ?",
    )
    group.add_argument(
        "--layers",
        action="store_true",
        help="list the layers that --keep-float32 takes of MODEL, a bundle, in that precision; write nothing",
    )


def check_lowering(options: Any) -> None:
    """Refuse flags that contradict each other, before anything takes time.

    Raises:
        UsageError: a flag belongs to another one that is missing.
    """
    lowered, int8 = options.precision != "float32", options.precision == "int8"
    judged = options.protocol or options.split or options.allow_loss is not None
    for wrong, message in (
        (
            options.tensorrt and int8 and options.int8_for != "tensorrt",
            "TensorRT cannot read int8 for a CPU; add --int8-for tensorrt",
        ),
        (options.int8_for and not int8, "--int8-for belongs to --precision int8"),
        (
            options.tensorrt and options.precision == "bfloat16",
            "bfloat16 runs on OpenVINO; TensorRT's precision is float16",
        ),
        (
            options.emulate and options.precision != "bfloat16",
            "--emulate belongs to --precision bfloat16; float16 is always judged by its roundings",
        ),
        (
            options.keep_float32 and options.precision == "bfloat16",
            "OpenVINO decides which layers of a bfloat16 graph are float32; leave --keep-float32 out",
        ),
        (options.calibrate and not int8, "--calibrate belongs to --precision int8; see --images"),
        (options.labelled and not lowered, "--labelled belongs to --precision bfloat16, float16 or int8"),
        (options.keep_float32 and not lowered, "--keep-float32 belongs to --precision float16 or int8"),
        (judged and not options.labelled, "--protocol, --split and --allow-loss belong to --labelled DATA"),
        (
            options.labelled and not options.protocol,
            "--labelled needs --protocol NAME; cir-bench accuracy --protocols lists them",
        ),
        (
            options.layers and options.precision not in ("float16", "int8"),
            "--layers belongs to --precision float16 or int8, which --keep-float32 takes layers of",
        ),
        (
            options.layers and not is_bundle(options.model),
            "--layers takes a float32 bundle; export MODEL without --precision before that",
        ),
        (
            int8 and not options.calibrate and not options.layers,
            "int8 needs images like those of your gallery to find its ranges; give a folder with --calibrate",
        ),
    ):
        if wrong:
            raise UsageError(message)


def check_names(options: Any) -> None:
    """Refuse what is named and is not there, before anything takes time.

    Raises:
        UsageError: a folder is none, or there is no such protocol or split.
        DatasetError: the labelled set cannot be read.
    """
    for flag, folder in (("--images", options.images), ("--calibrate", options.calibrate)):
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"{flag} {folder} is no folder; expected one of images")
    if options.labelled is not None:
        from cir_eval.protocols import protocol
        from cir_export.precision import Labelled

        Labelled.open(options.labelled, protocol(options.protocol), options.split)


def check_images(options: Any, image: dict[str, Any]) -> None:
    """Refuse folders with too few images, once it is known which files are images to the model.

    Args:
        options: of the command.
        image: what the model reads, as in a bundle's manifest.

    Raises:
        UsageError: a folder holds too few.
    """
    from cir_export.precision import check_calibration, check_samples
    from cir_export.samples import image_files

    if options.images is not None:
        found = len(image_files(options.images, image))
        if options.precision != "float32" and options.labelled is None:
            check_samples(found, options.images)
    if options.calibrate is not None:
        check_calibration(options.calibrate, image)


def default_output(model: str, precision: str) -> Path:
    """MODEL.cir, or MODEL-int8.cir, so that none takes the other's place; of a folder beside it.

    Raises:
        UsageError: MODEL has no name.
    """
    named = model.rpartition(":")[2]
    path = Path(named)
    if named and path.name in ("", "..") and path.is_dir():  # the folder that one is in, or one above
        path = Path(os.path.realpath(path))
    if not path.name:
        raise UsageError(f"MODEL is {shown(model)}; expected a checkpoint, a folder, or package.module:Name")
    if is_hub_name(model):
        path = Path(path.name)
    stem = path.name if is_hub_name(model) or path.is_dir() else path.stem
    return path.with_name(f"{stem}{'' if precision == 'float32' else f'-{precision}'}.cir")


def lower(options: Any, source: str | Path, output: str | Path) -> ConversionReport:
    """Convert a float32 bundle as the flags say.

    Raises:
        UsageError: a layer, a folder of images or a split does not exist as named.
        PrecisionError: it loses too much; unless --json was given the whole measurement is printed first.
    """
    from cir_eval.protocols import protocol
    from cir_export.precision import (
        Labelled,
        Lowering,
        PrecisionError,
        calibration_images,
        convert_bundle,
        samples_for,
    )
    from cir_infer.bundle import Bundle

    bundle = Bundle(source)
    labelled = None
    if options.labelled is not None:
        labelled = Labelled.open(options.labelled, protocol(options.protocol), options.split)
    calibration = (
        None if options.calibrate is None else calibration_images(bundle, options.calibrate, progress=True)
    )
    loss = {} if options.allow_loss is None else {"allowed_loss": options.allow_loss}
    lowering = Lowering(
        options.precision, options.int8_for or "cpu", options.keep_float32, **loss, emulate=options.emulate
    )
    try:
        return convert_bundle(
            source,
            output,
            lowering,
            samples_for(bundle, options.images, calibration),
            calibration,
            labelled,
            progress=True,
        )
    except PrecisionError as error:
        if not options.json:
            print(_measurement(options.precision, error.fidelity, error.drift, {}))
            print(_layers(error.layers), flush=True)
        raise


def list_layers(options: Any, source: str) -> None:
    """Print the layers of a float32 bundle that `--keep-float32` takes, in the order in which they compute.

    Raises:
        UsageError: it has none, or is not float32.
        BundleError: it is missing or damaged.
    """
    from cir_export.precision import lowerable_layers
    from cir_infer.bundle import Bundle

    bundle = Bundle(source)
    if bundle.manifest.precision != "float32":
        raise UsageError(
            f"{source} is {bundle.manifest.precision} already; name the float32 bundle that it was made of"
        )
    layers = lowerable_layers(bundle, options.precision, options.int8_for or "cpu")
    if options.json:
        print_json({"layers": [layer._asdict() for layer in layers]})
        return
    rows = [[layer.name, layer.graph, f"{layer.nbytes / 1e6:.2f}"] for layer in layers]
    print(format_table(["layer", "graph", "MB in float32"], rows, right=[2]))


def lowered_json(report: ConversionReport) -> dict[str, Any]:
    """What was written, as plain values."""
    return {
        "bundle": report.path,
        "bytes": report.path.stat().st_size,
        "bytes_float32": report.bytes_before,
        "reference_in_compose": report.in_compose,
        "fingerprint": report.manifest.fingerprint,
        "precision": report.manifest.precision,
        "refines_without_image": report.manifest.refines_without_image,
        "provenance": report.manifest.provenance,
        "parity": report.manifest.parity,
    }


def refining(manifest: Manifest) -> str:
    """What it takes to refine a Hit, which nothing else tells before a gallery is asked."""
    if manifest.refines_without_image:
        return "a Hit is refined without its image"
    return "refining a Hit needs its image"


def shown_lowering(report: ConversionReport) -> str:
    """What was measured, for a reader."""
    manifest = report.manifest
    size = report.path.stat().st_size
    text = _measurement(
        manifest.precision, report.fidelity, report.drift, manifest.parity["precision"]["limits"]
    )
    if report.kept:
        text += f"\n  in float32: {', '.join(report.kept)}"
    if report.text_kept:
        some = "text" in manifest.parity["precision"]["graphs"]
        what = "those of these layers that read texts" if some else "the text encoder"
        text += f"\n  {what} could not be int8: {'; '.join(report.text_kept)}"
    share = size / report.bytes_before
    text += f"\n\nwrote {report.path}, {size / 1e6:.1f} MB ({share:.0%} of float32); {refining(manifest)}"
    if report.in_compose:
        text += (
            f"\n{report.in_compose / 1e6:.1f} MB encode the reference image inside compose, which stays "
            "float32, so queries gain little; what encode_reference does is in a graph that becomes "
            f"{manifest.precision} (docs/systems.md)"
        )
    return text


def _asked(limit: float, shown: str) -> str:
    """A limit as what it judges is shown, without zeros at its end."""
    return f"{100 * limit:g}%" if "%" in shown else f"{limit:g}"


def _measurement(
    precision: str, fidelity: Fidelity, drift: RecallDrift | None, limits: dict[str, float]
) -> str:
    figures = (
        ("cosine of image embeddings, mean", fidelity.cosine_mean, "{:.6f}", None),
        ("cosine of image embeddings, worst", fidelity.cosine_worst, "{:.6f}", "cosine_worst"),
        ("cosine of text embeddings, worst", fidelity.text_cosine_worst, "{:.6f}", "cosine_worst"),
        ("score error, mean", fidelity.score_error_mean, "{:.1e}", None),
        ("score error, worst", fidelity.score_error_worst, "{:.1e}", None),
        ("agreement of the first ten", fidelity.top10_agreement, "{:.2%}", "top10_agreement"),
    )
    rows = [
        [what, shown.format(value), f">= {_asked(limits[limit], shown)}" if limit in limits else ""]
        for what, value, shown, limit in figures
        if value is not None
    ]
    notes = [f"on {fidelity.images:,} images, {fidelity.queries:,} queries: {fidelity.source}"]
    if not fidelity.finite:
        rows.append(["embeddings", "not finite", ""])
    if drift is not None:
        for part, changes in drift.drift["metrics"].items():
            recalls = {name: change for name, change in changes.items() if name.startswith("R")}
            rows += [[f"{name}, {part}", change(points), ""] for name, points in recalls.items()]
        asked = f">= {-limits['loss']:g}" if "loss" in limits else ""
        judged = f"{drift.metric}: {drift.before:.2f} to {drift.after:.2f}"
        rows.append([judged, change(-drift.loss), asked])
        notes.append(f"recall on {drift.queries:,} queries of {drift.protocol}, {drift.split}")
    header = [f"{precision} against float32", "measured", "asked"]
    return f"\n{format_table(header, rows, right=[1])}\n  " + "\n  ".join(notes)


def _layers(layers: Sequence[LayerError]) -> str:
    rows = [
        [error.layer, error.graph, "overflows" if error.overflows else f"{error.cosine_worst:.6f}"]
        for number, error in enumerate(layers)
        if number < _LAYERS_SHOWN or error.overflows
    ]
    return "\n" + format_table(["layer, lowered alone", "graph", "worst cosine"], rows, right=[2]) + "\n"
