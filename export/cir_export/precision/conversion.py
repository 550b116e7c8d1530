"""A float32 bundle becomes one of another precision: lower, open, measure, judge, and only then write."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from cir_export.memory import give_back
from cir_export.precision.blame import costliest, layer_errors
from cir_export.precision.calibration import Calibration, check_samples, texts_read
from cir_export.precision.composing import reference_in_compose
from cir_export.precision.fidelity import Fidelity, measure_fidelity, see
from cir_export.precision.gate import ALLOWED_LOSS, LIMITS, PrecisionError, objections
from cir_export.precision.graphs import LoweredGraph, PrecisionName, lower_graphs
from cir_export.precision.int8 import Form
from cir_export.precision.recall import Labelled, RecallDrift, evaluated, measure_drift
from cir_export.precision.sums import LIMITS as SUMS
from cir_export.precision.sums import sums_gap
from cir_export.precision.writing import write_with
from cir_export.samples import Samples
from cir_export.targets import check_target
from cir_infer.bundle import Bundle
from cir_infer.bundle.manifest import Manifest
from cir_infer.console.progress import progress_bar
from cir_infer.engine import Engine
from cir_infer.errors import DeviceError, ExportError, UsageError
from cir_infer.inputs.preprocess import preprocess
from cir_infer.inputs.texts import Text
from cir_infer.processes.outputs import check_apart, scratch_beside
from cir_infer.runtime.devices import open_backend
from cir_infer.runtime.graph import Array
from cir_infer.runtime.plan_policy import PlanPolicy

__all__ = ["ConversionReport", "Lowering", "convert_bundle"]

_BATCH = 1
"""Images at a time: calibration looks at every value of a graph, and at what its explanations add."""


@dataclass(frozen=True)
class Lowering:
    """Which precision, and what it may cost.

    Attributes:
        precision: "bfloat16", "float16" or "int8".
        form: what will run int8: "cpu" for ONNX Runtime, or "tensorrt".
        keep_float32: patterns of layers that stay float32.
        allowed_loss: points of R@10, judged on a labelled set.
        emulate: judge bfloat16 by its roundings on ONNX Runtime, where no processor at hand computes it.
    """

    precision: PrecisionName
    form: Form = "cpu"
    keep_float32: Sequence[str] = ()
    allowed_loss: float = ALLOWED_LOSS
    emulate: bool = False


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion wrote and how it was judged.

    Attributes:
        path: the bundle.
        manifest: as written; its parity report has all of this under "precision".
        bytes_before: size of the float32 bundle.
        kept: layers that stayed float32.
        in_compose: see `reference_in_compose`: bytes of it, which stayed float32.
        fidelity: against the float32 bundle.
        drift: recall before and after, where there was a labelled set.
        text_kept: why int8's text encoder, or layers of it, stayed float32 where they could have become int8.
    """

    path: Path
    manifest: Manifest
    bytes_before: int
    kept: tuple[str, ...]
    in_compose: int
    fidelity: Fidelity
    drift: RecallDrift | None
    text_kept: tuple[str, ...] = ()


def convert_bundle(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    lowering: Lowering,
    samples: Samples,
    calibration: Calibration | None = None,
    labelled: Labelled | None = None,
    progress: bool = False,
) -> ConversionReport:
    """Writes a bundle in another precision if it stays close enough to the float32 one.

    Needs no torch.

    Args:
        source: a float32 bundle.
        target: where to; an existing file is replaced at once or not at all.
        lowering: which precision, and what it may cost.
        samples: what both bundles are compared on; none of it is calibrated with.
        calibration: images and texts whose extremes become int8's ranges.
        labelled: a data set whose recall decides; None lets cosines and agreement decide.
        progress: say how far it is.

    Raises:
        DeviceError: bfloat16 where nothing computes it, and no emulation was asked for.
        UsageError: int8 without calibration, a layer that does not exist, a bundle that is not float32, or
            too few images to judge by.
        PrecisionError: it loses too much; nothing is written, and the error names the layers.
        ExportError: a converter fails, or the file cannot be written.
    """
    bundle, target = Bundle(source), Path(target)
    _check(bundle, target, lowering, calibration)
    if labelled is None:
        check_samples(len(samples.images), samples.source)
    spec = bundle.manifest.image

    def batches() -> Iterable[Array]:
        assert calibration is not None  # only int8 asks
        images = calibration.images
        for start in progress_bar(
            range(0, len(images), _BATCH), len(images), "calibrating", "image", progress, _BATCH
        ):
            yield np.stack([preprocess(image, spec) for image in images[start : start + _BATCH]])

    text_kept: list[str] = []
    texts = None
    if calibration is not None and calibration.texts and bundle.manifest.text is not None:
        texts = partial(_read, bundle, calibration.texts, progress)
    graphs = lower_graphs(
        bundle,
        lowering.precision,
        lowering.form,
        lowering.keep_float32,
        batches,
        texts,
        lambda error: text_kept.append(str(error)),
        progress,
    )
    try:
        with scratch_beside(target) as scratch:
            judge = partial(
                _judge, bundle, scratch, lowering, samples=samples, labelled=labelled, progress=progress
            )
            judged = judge(graphs)
            int8_text = lowering.precision == "int8" and len(graphs) > 1 and graphs[-1].name == "text"
            if judged.refused and int8_text:
                # A text encoder has outliers where its images have none, and is the smaller part of a query.
                text_kept = judged.refused
                graphs, judged = _with_less_text(bundle, graphs, judge, samples, progress)
        fidelity, drift = judged.fidelity, judged.drift
        if judged.refused:
            layers = layer_errors(bundle, graphs, samples, progress)
            raise PrecisionError(lowering.precision, judged.refused, fidelity, drift, layers)
        kept = tuple(layer for graph in graphs for layer in graph.layers if layer in graph.kept)
        report: dict[str, Any] = {
            "precision": {
                "source": bundle.manifest.fingerprint,
                "form": lowering.form if lowering.precision == "int8" else None,
                "graphs": [graph.name for graph in graphs],
                "float32_text_because": text_kept or None,
                "float32_layers": list(kept),
                "calibration": calibration and calibration.to_json(graphs[-1].name == "text"),
                "judged_on": judged.on,
                "judged_by": "recall" if drift else "cosine and top-10 agreement",
                "limits": _limits(lowering, drift),
                "fidelity": fidelity.to_json(),
                "recall": None if drift is None else drift.to_json(),
            }
        }
        gap = judged.gap
        if gap is not None:
            report["precision"]["rows_as_sums"] = gap if np.isfinite(gap) else None
            if not gap <= SUMS[lowering.precision]:
                report["unexplained"] = f"{lowering.precision} rows and their sums differ by {gap:.1e}"
        path = _written(bundle, target, lowering, graphs, report, progress=progress)
    except OSError as error:
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from error
    size = Path(source).stat().st_size
    inside = reference_in_compose(bundle)
    manifest = Bundle(path).manifest
    return ConversionReport(path, manifest, size, kept, inside, fidelity, drift, tuple(text_kept))


def _with_less_text(
    bundle: Bundle,
    graphs: Sequence[LoweredGraph],
    judge: Callable[[Sequence[LoweredGraph]], _Judgement],
    samples: Samples,
    progress: bool,
) -> tuple[list[LoweredGraph], _Judgement]:
    """The graphs with as much of their text encoder, the last, in float32 as it takes, and how they did."""
    *others, text = graphs
    without = judge(others)
    if without.refused:
        return others, without
    errors = layer_errors(bundle, [text], samples, progress)
    hurting = costliest(errors, (1 - LIMITS["int8"].cosine) / 2)
    if text.keeping is not None and 0 < len(hurting) < len(errors):
        some = [*others, text.keeping(hurting)]
        judged = judge(some)
        if not judged.refused:
            return some, judged
    return others, without


def _read(bundle: Bundle, texts: Sequence[Text], progress: bool) -> Iterator[Mapping[str, Array]]:
    return progress_bar(texts_read(bundle, texts), len(texts), "calibrating", "text", progress)


@dataclass(frozen=True)
class _Judgement:
    """What was measured of lowered graphs, on what, and what speaks against them."""

    on: str
    fidelity: Fidelity
    drift: RecallDrift | None
    gap: float | None
    refused: list[str]


def _judge(
    bundle: Bundle,
    scratch: Path,
    lowering: Lowering,
    graphs: Sequence[LoweredGraph],
    samples: Samples,
    labelled: Labelled | None,
    progress: bool,
) -> _Judgement:
    judged, where = _judged(bundle, scratch, lowering, graphs, progress)
    fidelity, drift, gap = _measure(bundle, judged, samples, labelled, progress)
    refused = objections(lowering.precision, fidelity, drift, lowering.allowed_loss)
    return _Judgement(where, fidelity, drift, gap, refused)


def _check(bundle: Bundle, target: Path, lowering: Lowering, calibration: Calibration | None) -> None:
    found = bundle.manifest.precision
    if found != "float32":
        raise UsageError(f"{bundle.path} is {found} already; convert the float32 bundle that it was made of")
    if lowering.precision == "int8" and calibration is None:
        raise UsageError(
            "int8 needs images like those of your gallery to find its ranges; give a folder with --calibrate"
        )
    if lowering.emulate and lowering.precision != "bfloat16":
        raise UsageError("only bfloat16 is emulated on request; float16 always is, int8 never")
    if lowering.keep_float32 and lowering.precision == "bfloat16":
        raise UsageError(
            "OpenVINO decides which layers of a bfloat16 graph are float32; leave --keep-float32 out, or use "
            "another precision"
        )
    if not lowering.allowed_loss >= 0:
        raise UsageError(f"a loss of {lowering.allowed_loss} points is allowed; expected 0 or more")
    check_target(target)
    check_apart(target, [bundle.path])


def _judged(
    bundle: Bundle, scratch: Path, lowering: Lowering, graphs: Sequence[LoweredGraph], progress: bool
) -> tuple[Engine, str]:
    """What is measured, and on what, in words.

    Raises:
        DeviceError: nothing here computes in this precision.
        ExportError: the graphs do not run.
    """
    on_openvino = lowering.precision == "bfloat16" and not lowering.emulate
    if on_openvino:
        try:
            open_backend("openvino", None, PlanPolicy(precision="bfloat16"))
        except DeviceError as error:
            raise DeviceError(
                f"bfloat16 cannot be judged here: {error}; convert on a machine that computes it rightly, or "
                "judge an emulation of its roundings with --emulate"
            ) from error
    lowered = _written(bundle, scratch / "lowered.cir", lowering, graphs, progress=progress)
    as_it_is = all(graph.judged is graph.model for graph in graphs)
    if on_openvino or as_it_is or lowering.precision != "bfloat16":
        engine = _runs(lowered, "openvino" if on_openvino else "cpu", lowering.precision)
        if on_openvino:
            about = engine.describe()["backend"]
            return engine, f"{about['library']} on {about['processor']}"
        if as_it_is:
            return engine, "ONNX Runtime"
        engine.close()
        give_back()
    path = _written(bundle, scratch / "judged.cir", lowering, graphs, judged=True, progress=progress)
    return Engine(path, device="cpu"), "ONNX Runtime, with its roundings"


def _runs(lowered: Path, device: str, precision: PrecisionName) -> Engine:
    """A bundle that answers.

    Raises:
        ExportError: it does not.
    """
    engine = None
    try:
        engine = Engine(lowered, device=device)
        engine.warm_up()
    except DeviceError as error:
        if engine is not None:
            engine.close()
        said = str(error).partition("; use device")[0]
        kept = "" if precision == "bfloat16" else " name the layer before that with --keep-float32, or"
        raise ExportError(
            f"the {precision} graphs do not run on the processor: {said};{kept} take another precision"
        ) from error
    return engine


def _written(
    bundle: Bundle,
    path: Path,
    lowering: Lowering,
    graphs: Sequence[LoweredGraph],
    report: dict[str, Any] | None = None,
    judged: bool = False,
    progress: bool = False,
) -> Path:
    manifest = bundle.manifest
    explain = manifest.explain
    parity = {**manifest.parity, **(report or {})}
    if explain is not None and "unexplained" in parity:
        explain = None
    # An emulation computes in float32 what it rounds.
    precision = "float32" if judged and lowering.precision == "bfloat16" else lowering.precision
    lowered = replace(manifest, precision=precision, parity=parity, explain=explain)
    models: dict[str, ModelProto] = {}
    for graph in graphs:
        models[manifest.graphs[graph.name]] = graph.judged if judged else graph.model
        if explain is not None and graph.rest is not None:
            models[explain.file] = graph.rest
    write_with(bundle, path, lowered, models, progress=progress)
    return path


def _measure(
    bundle: Bundle, judged: Engine, samples: Samples, labelled: Labelled | None, progress: bool
) -> tuple[Fidelity, RecallDrift | None, float | None]:
    """One bundle after the other: each takes its weights in memory, and more for what is made of them."""
    with judged:
        after = see(judged, samples, progress)
        # Recall of embeddings that are not finite means nothing.
        recalled = None if labelled is None or after.terms is None else evaluated(judged, labelled)
    give_back()
    gap = sums_gap(Bundle(judged.path), judged.device, samples, progress) if judged.adds_up else None
    give_back()
    with Engine(bundle, device="cpu") as exact:
        fidelity = measure_fidelity(see(exact, samples, progress), after, samples)
        drift = None
        if labelled is not None and recalled is not None and fidelity.finite:
            drift = measure_drift(evaluated(exact, labelled), recalled, labelled)
    return fidelity, drift, gap


def _limits(lowering: Lowering, drift: RecallDrift | None) -> dict[str, float]:
    if drift is not None:
        return {"loss": lowering.allowed_loss}
    limits = LIMITS[lowering.precision]
    return {"cosine_worst": limits.cosine, "top10_agreement": limits.agreement}
