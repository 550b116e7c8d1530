"""What a conversion says meanwhile."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cir_export.precision import Lowering, convert_bundle, samples_for
from cir_infer.bundle import Bundle
from cir_infer.console import progress
from tests.export.precision.bundles import convolutional, photographs


def test_judging_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "_FIRST", 0.0)
    monkeypatch.setattr(progress, "_LEAST_SHARE", 0.0)
    caplog.set_level(logging.INFO, "cir_infer")
    source = convolutional(tmp_path / "a.cir")
    samples = samples_for(Bundle(source), photographs(tmp_path / "photos", 12), None)
    convert_bundle(source, tmp_path / "b.cir", Lowering("float16"), samples, progress=True)
    said = [text for text in caplog.messages if text.startswith("encoding")]
    assert sum(" 12/12 " in text for text in said) == 2 < len(said)  # either bundle, as it goes
