"""Bundles in bfloat16, float16 and int8: converted, measured, and refused where they lose too much."""

from cir_export.precision.calibration import (
    Calibration,
    calibration_images,
    check_calibration,
    check_samples,
    samples_for,
)
from cir_export.precision.conversion import ConversionReport, Lowering, convert_bundle
from cir_export.precision.gate import PrecisionError
from cir_export.precision.graphs import PRECISIONS, lowerable_layers
from cir_export.precision.int8 import FORMS
from cir_export.precision.recall import Labelled

__all__ = [
    "FORMS",
    "PRECISIONS",
    "Calibration",
    "ConversionReport",
    "Labelled",
    "Lowering",
    "PrecisionError",
    "calibration_images",
    "check_calibration",
    "check_samples",
    "convert_bundle",
    "lowerable_layers",
    "samples_for",
]
