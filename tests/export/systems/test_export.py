"""The systems whose graphs differ in kind, exported and held against PyTorch by the export itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from cir_export.model_file import TrainedModel
from cir_export.preprocessing import plain_resize, word_text
from tests.export.systems.examples import TOKENIZER, example, side
from tests.export.systems.shared import exported


@pytest.mark.parametrize(
    "name", ["show-and-tell", "sac", "clip-artemis", "val", "cosmo", "composeae", "maaf", "cirplant"]
)
def test_a_system_exports(tmp_path: Path, name: str) -> None:
    model = example(name)
    trained = TrainedModel(model, TOKENIZER, plain_resize(side(name)), word_text(60))
    engine = exported(trained, tmp_path / "model.cir")
    assert engine.manifest.system == model.system
    assert engine.manifest.weighted == model.weighted
    assert engine.row_is_reference == model.reference_is_gallery_row
