"""Configurations: what is read, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from cir_export.models.composeae import ComposeAe
from cir_export.training.configuration import read_config
from cir_infer.errors import TrainingError, UsageError

GOOD = """
[data]
path = "scenes"
[model]
system = "artemis"
[model.image]
trunk = "small"
size = 24
[model.text]
encoder = "bigru"
[training]
epochs = 2
"""


def _read(folder: Path, text: str):
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_paths_are_relative_to_the_file_and_defaults_are_the_papers(tmp_path):
    config = _read(tmp_path, GOOD)
    assert Path(config.data.path) == (tmp_path / "scenes").resolve()
    assert (config.training.learning_rate, config.training.schedule) == (5e-4, "halving")
    assert config.training.halving_epochs == 10


def test_the_digest_ignores_where_the_data_lie(tmp_path):
    config = _read(tmp_path, GOOD)
    assert config.with_data(tmp_path / "elsewhere").digest == config.digest
    assert _read(tmp_path, GOOD.replace("epochs = 2", "epochs = 3")).digest != config.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs = 2", "epochs = 0"), "epochs: 0; expected at least 1"),
        (("epochs = 2", ""), "'epochs' is missing"),
        (("epochs = 2", 'epochs = "2"'), "is not of type int"),
        (("epochs = 2", "epochs = 2\nschedule = 'linear'"), "expected one of cosine, halving"),
        (("epochs = 2", "epochs = 2\nprecision = 'int8'"), "expected one of float32"),
        (("epochs = 2", "epochs = 2\nlearning_rate = -1.0"), "expected between 0 and 1"),
        (("epochs = 2", "epochs = 2\nweight_decay = -inf"), "weight_decay: -inf is no finite number"),
        (("epochs = 2", f"epochs = 2\nweight_decay = 1{'0' * 400}"), "weight_decay: .* is no finite number"),
        (("epochs = 2", "epochs = 2\nepoch = 3"), "unknown key 'epoch'"),
        (("[training]", "[trainings]"), "expected data, model and training"),
        (("[model.text]", "[model.words]"), "no table text"),
        (("epochs = 2", "epochs ="), "is not TOML"),
        (("epochs = 2", f"epochs = {'9' * 5000}"), "is not TOML: Exceeds the limit"),
        (("epochs = 2", f"epochs = {'[' * 100_000}"), "is not TOML: it is nested too deep"),
        (
            ("[model]", f"[model]\n{'a.' * 60}a = 1"),
            "is not TOML: it is nested too deep; expected at most 32",
        ),
        (("[model]", f"[model]\n{'a.' * 40_000}a = 1"), "is not TOML: a line has more than 200 dots"),
        (("epochs = 2", f"epochs = 2\nseed = {1 << 44}"), "training.seed: 17592186044416 is too large"),
        (
            ("epochs = 2", "epochs = 2\nloss_set = 2\nloss_sets = 1_000_000"),
            "loss_sets: 1,000,000; expected up",
        ),
        (('path = "scenes"', 'path = "scenes\\u0000"'), r"data.path: 'scenes\\x00'; expected a path"),
        (("[model.image]", "clip = 3\n[model.image]"), "model.clip: 3; expected a table of keys and values"),
    ],
)
def test_a_wrong_configuration_is_one_clear_error(tmp_path, change, words):
    with pytest.raises(TrainingError, match=words):
        _read(tmp_path, GOOD.replace(*change))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400], ids=["nan", "infinite", "long"])
def test_numbers_of_a_model_are_finite(value):
    config = {"system": "composeae", "image": {}, "text": {}, "symmetry": value}
    with pytest.raises(UsageError, match=r"model\.symmetry: .* is no finite number"):
        ComposeAe.from_config(config)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    assert _read(tmp_path, f"\ufeff{GOOD}") == _read(tmp_path, GOOD)


def test_what_is_set_may_be_too_long_a_number_or_too_deep(tmp_path):
    config = _read(tmp_path, GOOD)
    for value in ("9" * 5000, "[" * 100_000, "{" + "a." * 60 + "a=1}"):
        with pytest.raises(TrainingError, match=r"training\.seed: .* is not of type int"):
            config.changed([f"training.seed={value}"])
    with pytest.raises(TrainingError, match=r"model\.image: 3; expected a table"):
        config.changed(["model.image=3"])


def test_a_path_that_leads_to_itself_is_said_to(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    try:
        read = _read(tmp_path, GOOD.replace('"scenes"', '"loop/scenes"'))
    except TrainingError as error:  # until Python 3.12
        assert "data.path: " in str(error)
    else:
        assert read.data.path.endswith("loop/scenes")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"nowhere\.toml cannot be read"):
        read_config(tmp_path / "nowhere.toml")
