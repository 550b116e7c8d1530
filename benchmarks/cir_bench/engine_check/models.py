"""The models of an engine check, as bundles: exported here, or carried to a machine that cannot export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cir_infer.errors import CirError

if TYPE_CHECKING:
    from cir_export.model_file import TrainedModel

__all__ = ["MAIN", "MODELS", "bundle_path", "export_model", "lower_model", "trained_model"]

ROOT = Path(__file__).parents[3]
MAIN = "resnet50-bigru"
"""What the targets are about, so it comes first."""
MODELS = (MAIN, "resnet50-lstm", "resnet18-bigru", "resnet18-lstm", "artemis-scenes")


def bundle_path(folder: Path, model: str, precision: str) -> Path:
    """Where the bundle of a model is."""
    return folder / f"{model}-{precision}.cir"


def trained_model(model: str) -> TrainedModel:
    """The committed model, or one of the papers' sizes with random weights. Needs torch."""
    from cir_bench.seeded_models import seeded_model
    from cir_export.checkpoints import load_trained

    if model == "artemis-scenes":
        return load_trained([ROOT / "models" / model / "model.pt"])
    trunk, text = model.split("-")
    return seeded_model("artemis", trunk, text)


def export_model(trained: TrainedModel, path: Path) -> None:
    """Export it in float32.

    Raises:
        ExportError: it cannot be exported.
    """
    from cir_export.export import export_bundle
    from cir_export.verification import draw_samples

    export_bundle(trained, path, draw_samples(trained.image, trained.text, trained.tokenizer))


def lower_model(path: Path, target: Path) -> None:
    """Make the float16 bundle of a float32 one.

    Raises:
        CirError: it loses too much, or the converter is not installed.
    """
    from cir_export.commands.export import main as export

    if export([str(path), "--precision", "float16", "-o", str(target)]) != 0:
        raise CirError(f"{path.name} could not be converted to float16; see above")
