"""What a conversion, an export and an engine say meanwhile."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cir_export.export import export_bundle
from cir_export.model_file import TrainedModel
from cir_export.precision import Lowering, calibration_images, convert_bundle, samples_for
from cir_export.preprocessing import plain_resize, word_text
from cir_export.samples import Samples
from cir_export.verification import draw_samples
from cir_infer import Engine
from cir_infer.bundle import Bundle
from cir_infer.console import progress
from tests.bundles import SIDE, write_tiny_bundle
from tests.export.precision.bundles import convolutional, photographs, wordy
from tests.export.systems.examples import TOKENIZER, example, side

if TYPE_CHECKING:
    from tests.export.once import Once


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Says each step, however quick."""
    monkeypatch.setattr(progress, "_FIRST", 0.0)
    monkeypatch.setattr(progress, "_LEAST_SHARE", 0.0)
    caplog.set_level(logging.INFO, "cir_infer")
    return caplog


def finished(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What came to its end, with the unit: "encoding 12 image"."""
    lines = (
        re.match(r"(.+?): +100% (\d+)/\2 \[.*?([a-z]+)(/s|s/[a-z]+)?\]$", text) for text in caplog.messages
    )
    return [f"{line[1]} {line[2]}" for line in lines if line]


def test_judging_says_how_far_it_is(tmp_path: Path, every_step: pytest.LogCaptureFixture) -> None:
    source = convolutional(tmp_path / "a.cir")
    samples = samples_for(Bundle(source), photographs(tmp_path / "photos", 12), None)
    convert_bundle(source, tmp_path / "b.cir", Lowering("float16"), samples, progress=True)
    said = [text for text in every_step.messages if text.startswith("encoding") and "image" in text]
    assert sum(" 12/12 " in text for text in said) == 2 < len(said)  # either bundle, as it goes


def test_calibrating_and_quantising_say_how_far_they_are(
    tmp_path: Path, every_step: pytest.LogCaptureFixture
) -> None:
    source = wordy(tmp_path / "a.cir")
    calibration = calibration_images(Bundle(source), photographs(tmp_path / "photos"), progress=True)
    samples = samples_for(Bundle(source), None, calibration)
    convert_bundle(source, tmp_path / "b.cir", Lowering("int8"), samples, calibration, progress=True)
    told = finished(every_step)
    assert told[:4] == [
        "reading 48",
        f"calibrating {len(calibration.images)}",
        f"calibrating {len(calibration.texts)}",
        "lowering to int8 2",
    ]
    assert told.count("making weights 2") == told.count("writing 5") == 2  # to be judged, and for good
    assert told.count(f"encoding {len(samples.texts)}") == 2
    every_step.clear()
    convert_bundle(source, tmp_path / "b.cir", Lowering("int8"), samples, calibration)
    assert not finished(every_step)


def test_an_export_says_how_far_it_is(
    tmp_path: Path, every_step: pytest.LogCaptureFixture, exported_once: Once
) -> None:
    trained = TrainedModel(example("val"), TOKENIZER, plain_resize(side("val")), word_text(60))
    drawn = draw_samples(trained.image, trained.text, trained.tokenizer)
    with exported_once():
        export_bundle(trained, tmp_path / "val.cir", Samples(drawn.images[:5], drawn.texts[:7], "some"), True)
    told = finished(every_step)
    asked = ["asking PyTorch 5", "asking PyTorch 5", "asking PyTorch 7"]  # rows, references, texts
    again = ["encoding 5", "encoding 5", "encoding 7", "encoding 7"]
    written = [told.index(one) for one in told if one.startswith("writing")]
    assert [one for one in told if one.startswith(("asking", "encoding"))] == [*asked, *again]
    assert len(written) == 2 and told[-1].startswith("writing")


def test_references_and_texts_say_how_far_they_are(
    tmp_path: Path, every_step: pytest.LogCaptureFixture
) -> None:
    pictures = np.zeros((5, SIDE, SIDE, 3), np.uint8)
    with Engine(write_tiny_bundle(tmp_path / "a.cir", "separate"), device="cpu") as engine:
        engine.encode_references(pictures, 2, progress=True)
        engine.encode_texts(["is red"] * 3, 2, progress=True)
        assert finished(every_step) == ["encoding 5", "encoding 3"]
        every_step.clear()
        engine.encode_references(pictures, 2)
        engine.encode_texts(["is red"] * 3, 2)
        assert not finished(every_step)
