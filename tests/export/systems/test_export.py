"""The systems whose graphs differ in kind, exported and held against PyTorch by the export itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from cir_export.model_file import TrainedModel
from cir_export.preprocessing import feature_input, plain_resize, word_text
from tests.export.systems.examples import CONFIGS, TOKENIZER, example, side
from tests.export.systems.shared import composes_in_parts, exported

ON_FEATURES = {"show-and-tell", "composeae", "cirplant"}
"""Over an embedding as all others have: what is their own comes behind it, and its export takes seconds."""


@pytest.mark.parametrize(
    "name", ["show-and-tell", "sac", "clip-artemis", "val", "cosmo", "composeae", "maaf", "cirplant"]
)
def test_a_system_exports(tmp_path: Path, name: str) -> None:
    config, image = CONFIGS[name], plain_resize(side(name))
    if name in ON_FEATURES:
        config, image = {**config, "image": {"features": 12}}, feature_input(12)
    model = example(name, {name: config})
    engine = exported(TrainedModel(model, TOKENIZER, image, word_text(60)), tmp_path / "model.cir")
    assert engine.manifest.system == model.system
    assert engine.manifest.weighted == model.weighted
    assert engine.row_is_reference == model.reference_is_gallery_row
    assert composes_in_parts(engine) == (name != "show-and-tell")
