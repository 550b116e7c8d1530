"""From a trained model to a bundle: export, verify, and only then write."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cir_export.graphs import EXPLAIN, export_graphs, forget_graphs
from cir_export.memory import give_back
from cir_export.model_file import TrainedModel
from cir_export.preprocessing import check_inputs
from cir_export.targets import check_target
from cir_export.tokenization import known_words
from cir_export.verification import (
    Check,
    Samples,
    answers_of,
    compare,
    compare_sums,
    explain_of,
    why_unexplained,
)
from cir_export.weights import SEVERAL, WeightsFile
from cir_infer import __version__
from cir_infer.bundle import Bundle, write_bundle
from cir_infer.bundle.manifest import FORMAT, FORMAT_VERSION, TOKENIZER_NAME, WEIGHTS_NAME, Explain, Manifest
from cir_infer.bundle.manifest_reader import read_manifest
from cir_infer.bundle.writing import Content, FilePart
from cir_infer.engine import Engine
from cir_infer.errors import BundleError, DeviceError, ExportError
from cir_infer.processes.outputs import scratch_beside

__all__ = ["ExportReport", "ParityError", "export_bundle"]


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote and how it was verified.

    Attributes:
        path: the bundle.
        manifest: as written.
        checks: the comparison with PyTorch, all passed.
        samples: what was compared with.
    """

    path: Path
    manifest: Manifest
    checks: tuple[Check, ...]
    samples: Samples


class ParityError(ExportError):
    """The exported graphs disagree with the model.

    Attributes:
        checks: the whole comparison.
    """

    def __init__(self, checks: list[Check]) -> None:
        self.checks = tuple(checks)
        failed = [check for check in checks if not check.passed]
        super().__init__(
            f"the exported graphs disagree with PyTorch and no bundle was written: {failed[0].what} "
            f"differs by {failed[0].difference:.1e}, at most {failed[0].limit:.0e} is accepted "
            f"({len(failed)} of {len(checks)} checks failed)"
        )


def export_bundle(
    trained: TrainedModel,
    path: str | os.PathLike[str],
    samples: Samples,
    progress: bool = False,
    large: int = SEVERAL,
    keep_model: bool = True,
) -> ExportReport:
    """Exports a model into a bundle, which is written only if it agrees with the model.

    Args:
        trained: the model with its tokeniser and preprocessing.
        path: where to; an existing file is replaced at once or not at all.
        samples: what to verify with.
        progress: show a bar on a terminal.
        large: bytes of all weights from which the bundle keeps them beside its graphs, each once.
        keep_model: leave `trained.model` as it is. Otherwise large weights are given up as soon as its
            answers are known, before the runtime takes them in memory once more; their shapes stay.

    Raises:
        ExportError: the model cannot be exported, the graphs disagree with it (`ParityError`), or the
            file cannot be written.
    """
    path = Path(path)
    check_target(path)
    _check_inputs(trained)  # now, not after minutes of work
    try:
        with scratch_beside(path) as scratch:
            # Verified as a device will read it, by the runtime, before anything has the final name.
            unverified = scratch / "unverified.cir"
            explain = _write_unverified(trained, unverified, samples, progress, large)
            answers = answers_of(trained, samples, explain is not None, progress)
            if not keep_model and _size(trained) >= large:
                trained.model.to("meta")
                forget_graphs()
            give_back()
            bundle = Bundle(unverified)
            with Engine(bundle, device="cpu") as engine:
                checks, rows = compare(answers, engine, samples, progress)
            give_back()
            sums = [] if explain is None else compare_sums(trained, answers, bundle, rows, samples, progress)
            if not all(check.passed for check in checks):
                raise ParityError(checks)
            members = bundle.contents()
            parity: dict[str, Any] = {"images": samples.source}
            if explain is not None and all(check.passed for check in sums):
                checks += sums
            else:
                # Without it hits are explained by occlusion; nothing else depends on it.
                members.pop(f"{EXPLAIN}.onnx", None)
                explain, parity["unexplained"] = None, why_unexplained(trained, sums)
            parity["checks"] = [check.to_json() for check in checks]
            manifest = write_bundle(path, _manifest(trained, members, parity, explain), members, progress)
    except (BundleError, DeviceError) as error:
        raise ExportError(f"the model does not make a valid bundle: {error}") from error
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    return ExportReport(path, manifest, tuple(checks), samples)


def _write_unverified(
    trained: TrainedModel, path: Path, samples: Samples, progress: bool, large: int
) -> Explain | None:
    """Exports into a bundle that nobody has verified yet; what explanations need, where they can be."""
    weights = WeightsFile(path.with_name(WEIGHTS_NAME)) if _size(trained) >= large else None
    graphs = export_graphs(trained.model, trained.image, progress, weights, int(trained.text["max_tokens"]))
    members: dict[str, Content] = {f"{name}.onnx": content for name, content in graphs.items()}
    members[TOKENIZER_NAME] = trained.tokenizer.to_str().encode()
    if weights is not None and not weights.empty:
        members[WEIGHTS_NAME] = FilePart.of(weights.path)
    explain = explain_of(trained, samples) if EXPLAIN in graphs else None
    write_bundle(path, _manifest(trained, members, {}, explain), members, progress)
    if weights is not None:
        weights.path.unlink()
    return explain


def _size(trained: TrainedModel) -> int:
    return sum(value.nbytes for value in trained.model.state_dict().values())


def _check_inputs(trained: TrainedModel) -> None:
    try:
        check_inputs(trained.image, trained.text)
        json.dumps(trained.provenance, allow_nan=False)
    except BundleError as error:
        raise ExportError(f"the model does not make a valid bundle: {error}") from error
    except (TypeError, ValueError) as error:
        raise ExportError(f"the model's provenance is not plain JSON ({error})") from error
    expected = trained.model.config.get("image")
    size = expected.get("size") if isinstance(expected, dict) else None
    if size is not None and [trained.image.get("height"), trained.image.get("width")] != [size, size]:
        raise ExportError(
            f"the model's encoder takes images of {size} x {size} and its preprocessing gives "
            f"{trained.image.get('height')} x {trained.image.get('width')}"
        )


def _manifest(
    trained: TrainedModel, members: dict[str, Content], parity: dict[str, Any], explain: Explain | None
) -> Manifest:
    """As `write_bundle` takes it: what it says of the members is filled in there."""
    model = trained.model
    further = () if explain is None else (explain.file,)
    weights = {"weights": WEIGHTS_NAME} if WEIGHTS_NAME in members else {}
    tokens = model.tokens_per_item
    several = {} if tokens == 1 else {"tokens_per_item": tokens, "reduce": "max"}
    manifest = read_manifest(
        json.dumps(
            {
                "format": FORMAT,
                "version": FORMAT_VERSION,
                "system": model.system,
                "created_by": f"cir-infer {__version__}",
                "embedding_dim": model.embedding_dim,
                "terms": list(model.term_names),
                "weighted": model.weighted,
                "precision": "float32",
                **several,
                **weights,
                "image": trained.image,
                "text": trained.text,
                "graphs": {
                    name.removesuffix(".onnx"): name
                    for name in sorted(members)
                    if name.endswith(".onnx") and name not in further
                },
                "members": {
                    name: {"bytes": 1, "sha256": "0" * 64} for name in members if name not in further
                },
                "parity": parity,
                "provenance": {**trained.provenance, "vocabulary": known_words(trained.tokenizer)},
            }
        )
    )
    return replace(manifest, explain=explain)
