"""The models of an engine check, as bundles: exported here, or carried to a machine that cannot export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cir_bench.engine_check.pictures import write_pictures
from cir_infer.errors import CirError

if TYPE_CHECKING:
    from cir_export.model_file import TrainedModel

__all__ = ["MAIN", "MODELS", "bundle_path", "precisions_of", "trained_model", "write_model"]

ROOT = Path(__file__).parents[3]
MAIN = "resnet50-bigru"
"""What the targets are about, so it comes first."""
MODELS = (MAIN, "resnet50-lstm", "resnet18-bigru", "resnet18-lstm", "artemis-scenes")

_INT8 = (MAIN, "artemis-scenes")
_SEEDS = range(2000, 2048)
"""Of the pictures to calibrate with and to judge on, other than those that a check asks with."""


def precisions_of(model: str) -> tuple[str, ...]:
    """In which precisions a model is checked, float32 first."""
    return ("float32", "float16", *(("int8",) if model in _INT8 else ()))


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


def write_model(trained: TrainedModel, model: str, folder: Path) -> None:
    """Write the bundles of a model: float32, and what that becomes in the other precisions.

    Raises:
        CirError: it cannot be exported, or a precision loses too much.
    """
    from cir_export.commands.export import main as export
    from cir_export.export import export_bundle
    from cir_export.verification import draw_samples

    exact, *lowered = precisions_of(model)
    path = bundle_path(folder, model, exact)
    samples = draw_samples(trained.image, trained.text, trained.tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        export_bundle(trained, path, samples)
        pictures = str(write_pictures(Path(scratch) / "pictures", _SEEDS))
        flags = {
            "float16": ("--images", pictures),
            "int8": ("--calibrate", pictures, "--int8-for", "tensorrt"),  # judged on a quarter of them
        }
        for precision in lowered:
            target = str(bundle_path(folder, model, precision))
            if export([str(path), "--precision", precision, *flags[precision], "-o", target]) != 0:
                raise CirError(f"{path.name} could not be converted to {precision}; see above")
