"""`cir-train --set`: values in place of the file's."""

from __future__ import annotations

from pathlib import Path

import pytest

from cir_export.commands.train import main
from cir_export.training.configuration import read_config
from cir_infer.errors import TrainingError

CONFIG = Path(__file__).parents[2] / "models" / "systems" / "config.toml"


def test_values_of_every_table_can_be_set() -> None:
    config = read_config(CONFIG)
    changed = config.changed(
        [
            "training.seed=3",
            "model.form=paper",
            "model.image.size=48",
            "data.view=flat",
            "model.attention=false",
        ]
    )
    assert (changed.training.seed, changed.data.view) == (3, "flat")
    assert changed.model["form"] == "paper" and changed.model["attention"] is False
    assert changed.model["image"]["size"] == 48 and config.model["image"]["size"] == 72
    assert changed.digest != config.digest and config.changed([]).digest == config.digest


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed=3", "expected table.key=value"),
        ("training.seed", "expected table.key=value"),
        ("weather.rain=1", "expected table.key=value"),
        ("model.system.name=1", "expected table.key=value"),
        ("training.seed=x", "training.seed: 'x' is not of type int"),
        ("training.sead=1", "unknown key 'sead'"),
        ("training.epochs=0", "training.epochs: 0"),
    ],
)
def test_what_cannot_be_set(change: str, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        read_config(CONFIG).changed([change])


def test_the_command_takes_it_after_the_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [str(CONFIG), "--system", "sac", "--data", str(tmp_path), "-o", str(tmp_path)]
    assert main([*given, "--set", "training.sead=1"]) == 1
    assert "--set: training: unknown key 'sead'" in capsys.readouterr().err
