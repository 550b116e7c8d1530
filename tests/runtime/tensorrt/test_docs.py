"""docs/deploy.md says what the code says: predictions, variables, messages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cir_eval.predictions import prediction_table

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
SOURCES = " ".join(
    re.sub(r'"\s*f?"', "", path.read_text("utf-8")) for path in sorted((ROOT / "cir_infer").rglob("*.py"))
)


def test_the_predictions_are_those_of_the_code() -> None:
    table = prediction_table(scan_bytes=1_000_000 * 1024, scan_fraction=0.85, encoder_macs=4.1e9)
    for entry in table:
        row = (
            f"| {entry['device']} | {entry['encoder_float16_floor_ms']:.2f} ms "
            f"| {entry['encoder_float32_floor_ms']:.1f} ms |"
        )
        assert row in PAGE


@pytest.mark.parametrize("variable", sorted(set(re.findall(r"CIR_[A-Z_]+", PAGE))))
def test_variables_exist(variable: str) -> None:
    assert f'"{variable}"' in SOURCES


@pytest.mark.parametrize(
    "message",
    [
        "no NVIDIA driver (libcuda.so.1) on this machine",
        "the NVIDIA driver does not start (error ",
        "the GPU needs PyCUDA, which cannot be imported",
        "install TensorRT",
        "is too old",
        "cannot read the ",
        "of workspace",
        "the process was killed, most likely because memory ran out",
        " crashed (signal ",
        "the newest one has ",
        "is damaged or was cut short",
        "than ONNX Runtime on the CPU",
        "the bundle's int8 graphs have the form ",
        " is not trusted, for plans are programs: ",
        "queries are not replayed as CUDA graphs",
        "CUDA kernels were not compiled when cir-infer was installed",
        "loading the kernels for ",
        "ONNX Runtime could not start ",
    ],
)
def test_messages_of_the_troubleshooting_table_exist(message: str) -> None:
    assert message in SOURCES
    known = message.removeprefix("ONNX Runtime ").rstrip()
    assert known.split(" {")[0] in PAGE or known in ("cannot read the", "of workspace")
