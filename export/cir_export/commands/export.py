"""`cir-export`: a trained model becomes a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cir_export.commands.fast_jpeg import add_fast_jpeg_argument, check_fast_jpeg, make_fast_jpeg
from cir_export.commands.lowering import (
    add_lowering_arguments,
    check_images,
    check_lowering,
    check_names,
    default_output,
    list_layers,
    lower,
    lowered_json,
    refining,
    shown_lowering,
)
from cir_export.commands.presets import presets_json, shown_presets
from cir_export.commands.restating import check_restating, restate
from cir_export.plans import build_plans, is_bundle, require_gpu, shown_plans
from cir_export.stated import LONGEST, is_stated
from cir_export.targets import check_target
from cir_infer.console.common import CirParser, print_json, run_command
from cir_infer.console.tables import format_table
from cir_infer.errors import UsageError, shown
from cir_infer.extras import require
from cir_infer.processes.outputs import check_apart

__all__ = ["main"]


def _stated(text: str) -> str:
    if not is_stated(text):
        raise argparse.ArgumentTypeError(f"{shown(text)}; expected words, up to {LONGEST:,} characters")
    return text


@run_command
def main(arguments: Sequence[str] | None = None) -> None:
    """Exports a model, verifies the result against PyTorch, and writes it."""
    parser = CirParser(
        "cir-export",
        "Export a trained model into a bundle (.cir). What kind of checkpoint it is shows in its content. "
        "The exported graphs are compared with PyTorch on images and texts; a bundle that differs is not "
        "written.",
        "cir-export model.pt -o shop.cir\n  cir-export BGE-VL-base -o photos.cir\n  cir-export ckpt.pth "
        "--vocab fashionIQ_vocab.pkl -o artemis.cir\n"
        "  cir-export combiner.pt tuned_clip_best.pt -o clip4cir.cir\n"
        "  cir-export my_package.my_module:MyModel --weights w.pt --vocab tokenizer.json\n"
        "  cir-export artemis.cir --precision int8 --calibrate photos -o artemis-int8.cir\n"
        "  cir-export artemis.cir --fast-jpeg --images photos -o artemis-fast.cir\n"
        "  cir-export artemis.cir --triton models/ --gallery shop.gallery\n"
        "  cir-export artemis.cir --tensorrt",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="*",
        help="model.pt of cir-train; a folder of Hugging Face's transformers or open_clip, or OWNER/NAME on "
        "the Hub; a public "
        "repository's checkpoint; several files where a model has several, in any order: CLIP4Cir's "
        "Combiner, "
        "CLIP and training_hyperparameters.json; or "
        "package.module:Name, your own module, which is imported (docs/systems.md)",
    )
    parser.add_argument("--list", action="store_true", help="public models that are read, and their licences")
    parser.add_argument("--weights", metavar="FILE", help="state_dict of package.module:Name")
    parser.add_argument(
        "--vocab", metavar="FILE", help="the vocabulary of a checkpoint that does not hold it"
    )
    parser.add_argument(
        "--system",
        metavar="NAME",
        help="what a folder's two encoders make: sum (default) of reference and text, image-only or "
        "text-only",
    )
    parser.add_argument(
        "--image-size", metavar="HxW", help="for a TIRG of CSS, which sees images as they are: their size"
    )
    parser.add_argument(
        "--round-clip-to-float16",
        action="store_true",
        help="round CLIP's weights as CLIP4Cir's code does on a GPU, to reproduce its figures there",
    )
    parser.add_argument(
        "--exif-orientation",
        action=argparse.BooleanOptionalAction,
        help="turn photographs upright as their EXIF tag says, or leave them as their pixels lie, as the "
        "loaders of the public repositories do; of a bundle, its copy. Default: upright, or as MODEL says",
    )
    parser.add_argument(
        "--domain",
        type=_stated,
        metavar="TEXT",
        help="what the model was trained on, in words, for those who query it",
    )
    parser.add_argument(
        "--images", metavar="DIR", help="images to verify with; rendered and generated ones if left out"
    )
    parser.add_argument("-o", "--output", metavar="BUNDLE", help="default: MODEL.cir, MODEL-int8.cir")
    parser.add_argument(
        "--tensorrt",
        action="store_true",
        help="also build the TensorRT plans for the GPU of this machine; MODEL may be a bundle, whose plans "
        "are then built without torch, on the device itself",
    )
    parser.add_argument(
        "--triton",
        metavar="FOLDER",
        help="write a model repository for NVIDIA Triton: a bundle's graphs, and the search over its gallery",
    )
    parser.add_argument(
        "--gallery", metavar="FOLDER", help="with --triton: what is searched (default: the bundle's own)"
    )
    add_fast_jpeg_argument(parser)
    add_lowering_arguments(parser)
    options = parser.parse_args(arguments)
    if options.list:
        print_json(presets_json()) if options.json else print(shown_presets())
        return
    if not options.model:
        parser.error("no MODEL is given; expected a model.pt, a checkpoint, a folder, or --list")
    for model in options.model:
        if "://" in model:
            raise UsageError(f"MODEL is the address {shown(model)}; download it, and give the file")
    if options.output is not None and Path(options.output).suffix != ".cir":
        raise UsageError(
            f"-o is {shown(options.output)}; a bundle's name ends in .cir, by which every command knows it"
        )
    check_lowering(options)
    check_fast_jpeg(options, is_bundle(options.model))
    check_restating(options, is_bundle(options.model))
    if options.tensorrt:
        require_gpu()
    if options.triton is not None or options.gallery is not None:
        _write_triton(options)
        return
    if options.layers:
        require("--layers", "onnx")
        list_layers(options, options.model[0])
        return
    if is_bundle(options.model):
        _convert(options, options.model[0])
        return
    require("cir-export", "torch", "onnx", "onnxscript")

    from cir_export.export import ParityError, export_bundle
    from cir_export.model_file import TrainedModel
    from cir_export.preprocessing import with_exif_orientation
    from cir_export.verification import Check, draw_samples

    def show(trained: TrainedModel) -> None:
        print(f"{' '.join(options.model)}: {_origin(trained.provenance)}")
        facts = _facts(trained)
        if trained.provenance.get("format") == "module" and options.weights is None:
            facts["weights"] = f"as {options.model[0]} makes them; --weights FILE loads a state_dict"
        print("\n".join(f"  {name:<14} {value}" for name, value in facts.items()), flush=True)

    def show_checks(checks: Sequence[Check], source: str) -> None:
        rows = [
            [
                check.what,
                check.compared,
                f"{check.difference:.1e}" if check.limit else f"{check.difference:.0f}",
                f"{check.limit:.0e}" if check.limit else "0",
                "ok" if check.passed else "DIFFERS",
            ]
            for check in checks
        ]
        header = ["PyTorch against the bundle", "compared", "difference", "limit", ""]
        print(f"\n{format_table(header, rows, right=[2, 3])}\n  on {source}\n", flush=True)

    output = Path(options.output or default_output(options.model[0], options.precision))
    if options.output is not None or output.parent.is_dir():  # else MODEL is not there, which is told below
        check_target(output)
    check_apart(output, [*options.model, options.vocab, options.weights])
    check_names(options)
    trained = _load(options)
    check_images(options, trained.image)
    if options.exif_orientation is not None:
        trained.image = with_exif_orientation(trained.image, options.exif_orientation)
    if options.domain is not None:
        trained.provenance["domain"] = options.domain
    if not options.json:
        show(trained)
    samples = draw_samples(
        trained.image, trained.text, trained.tokenizer, options.images, _parameters(trained)
    )
    with TemporaryDirectory(prefix="cir-export-") as scratch:
        lowered = options.precision != "float32"
        exported = Path(scratch) / output.name if lowered else output
        try:
            report = export_bundle(trained, exported, samples, progress=True, keep_model=False)
        except ParityError as error:
            if not options.json:
                show_checks(error.checks, samples.source)
            raise
        if not options.json:
            show_checks(report.checks, samples.source)
        if lowered:
            _convert(options, exported, output)
            return
    if options.json:
        plans = {"plans": build_plans(report.path)} if options.tensorrt else {}
        print_json(
            {
                "bundle": report.path,
                "bytes": report.path.stat().st_size,
                "fingerprint": report.manifest.fingerprint,
                "refines_without_image": report.manifest.refines_without_image,
                "config": trained.model.config,
                "parameters": _parameters(trained),
                "vocabulary": trained.tokenizer.get_vocab_size(),
                "image": trained.image,
                "text": trained.text,
                "provenance": trained.provenance,
                "parity": report.manifest.parity,
                **plans,
            }
        )
        return
    size = report.path.stat().st_size
    print(f"wrote {report.path}, {size / 1e6:.1f} MB; {refining(report.manifest)}")
    if options.tensorrt:
        print(shown_plans(build_plans(report.path)))


def _write_triton(options: Any) -> None:
    from cir_export.triton import searched, write_repository

    if options.triton is None or not is_bundle(options.model):
        raise UsageError("--triton FOLDER takes a bundle (.cir), and --gallery belongs to it")
    names = write_repository(options.model[0], options.triton, options.gallery)
    gallery = searched(options.model[0], options.gallery)
    if options.json:
        print_json({"folder": options.triton, "models": names, "gallery": str(gallery)})
        return
    print(f"wrote {', '.join(names)} to {options.triton}")
    if not gallery.is_dir():
        print(f"no gallery is at {shown(str(gallery))} yet; Triton needs one to load {names[-1]}")


def _convert(options: Any, bundle: str | Path, output: Path | None = None) -> None:
    """What is made of a bundle: one of another precision or preprocessing, plans, or plans of that."""
    answer: dict[str, Any] = {}
    if output is None and (options.exif_orientation is not None or options.domain is not None):
        said = restate(options)
        print_json(said) if options.json else print(f"wrote {said['bundle']}{said['note']}")
        return
    if options.fast_jpeg:
        require("--fast-jpeg", "onnx")
        answer = make_fast_jpeg(options)
        if options.json:
            print_json(answer)
        return
    if options.precision != "float32":
        require(f"--precision {options.precision}", "onnx")
        output = output or Path(options.output or default_output(str(bundle), options.precision))
        report = lower(options, bundle, output)
        bundle, answer = report.path, lowered_json(report)
        if not options.json:
            print(shown_lowering(report))
    elif not options.tensorrt:
        from cir_infer.bundle import Bundle

        Bundle(bundle)  # what has no more of one than the name is refused as that
        raise UsageError(
            f"{shown(str(bundle))} is a bundle; say what is made of it: --precision, --fast-jpeg, "
            "--tensorrt, --triton, --domain, --exif-orientation or --no-exif-orientation"
        )
    if options.tensorrt and not options.json:
        print(shown_plans(build_plans(bundle)))
    if options.json:
        plans = {"plans": build_plans(bundle)} if options.tensorrt else {}
        print_json({"bundle": str(bundle), **answer, **plans})


def _load(options: Any) -> Any:
    from cir_export.bring_your_own import is_module_path, load_module
    from cir_export.checkpoints import load_trained

    first = options.model[0]
    if is_module_path(first) and not Path(first).exists():
        if len(options.model) > 1:
            raise UsageError(f"{first} is a model of its own; leave {options.model[1]} out")
        return load_module(first, options.weights, options.vocab)
    if options.weights is not None:
        raise UsageError("--weights belongs to package.module:Name; a checkpoint holds its weights")
    named = _module_of_code(first)
    if named is not None:
        raise UsageError(f"{shown(first)} is Python code; say what in it makes the model: {named}:NAME")
    return load_trained(
        options.model,
        options.vocab,
        _image_size(options.image_size),
        options.round_clip_to_float16,
        options.system,
    )


def _module_of_code(first: str) -> str | None:
    """`package.module`, where this is the file or the name of one; None where it is something else."""
    path = Path(first)
    if path.suffix != ".py" and not path.exists():
        path = Path(*first.split(".")).with_suffix(".py")
    if path.suffix != ".py" or not path.is_file():
        return None
    parts = path.with_suffix("").parts
    return ".".join(parts if all(part.isidentifier() for part in parts) else parts[-1:])


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and 1 <= int(side) <= 4096 for side in sides):
        raise UsageError(f"--image-size {text}; expected HEIGHTxWIDTH in pixels, e.g. 320x480")
    return int(sides[0]), int(sides[1])


def _origin(provenance: dict[str, Any]) -> str:
    plain = {
        key: value
        for key, value in provenance.items()
        if isinstance(value, str | int | float) and not key.endswith("_licence")
    }
    return ", ".join(f"{key} {value}" for key, value in plain.items()) or "a model file"


def _facts(trained: Any) -> dict[str, str]:
    """What was found, for a reader: system, encoders, sizes, vocabulary, preprocessing."""
    model, config = trained.model, trained.model.config
    facts = {
        "system": f"{model.system}: {', '.join(model.term_names)}"
        + (" (weighted)" if model.weighted else " (dot products)"),
    }
    for part in ("image", "text", "clip", "pair"):
        if isinstance(config.get(part), dict):
            facts[f"{part} encoder"] = _settings(config[part])
    licences = [trained.provenance.get(f"{what}_licence") for what in ("weights", "data")]
    if any(licences):
        weights, data = (licence or "not stated" for licence in licences)
        facts["licences"] = f"weights: {weights}; training data: {data}"
    facts["rows"] = f"{model.embedding_dim} values"
    facts["parameters"] = f"{_parameters(trained) / 1e6:.2f} million"
    facts["vocabulary"] = f"{trained.tokenizer.get_vocab_size():,} tokens"
    if trained.image["kind"] == "features":
        facts["preprocessing"] = f"pre-extracted features of {trained.image['size']:,} values"
    else:
        steps = [_settings(step, step["op"]) for step in trained.image["steps"]]
        facts["preprocessing"] = f"{', '.join(steps)}; {trained.image['height']} x {trained.image['width']}"
    facts["texts"] = _settings(trained.text)
    return facts


def _settings(values: dict[str, Any], name: str = "") -> str:
    said = [
        f"{key}={value!r}" if value == "" or str(value) != str(value).strip() else f"{key}={value}"
        for key, value in values.items()
        if key != "op"
    ]
    return " ".join([name, *said] if name else said)


def _parameters(trained: Any) -> int:
    return sum(parameter.numel() for parameter in trained.model.parameters())
