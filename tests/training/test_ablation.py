"""`cir-bench ablation`: trains what is missing, keeps what is done, and tabulates both."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image

from cir_bench.commands import main
from cir_bench.commands.ablation import ABLATIONS, table
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_export.models import build_model
from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.systems import with_vocabulary
from cir_infer.errors import TrainingError
from cir_infer.processes.locked_files import alone_in

CONFIG = """
[data]
path = "scenes"
[model]
system = "artemis"
embedding_dim = 16
[model.image]
trunk = "small"
size = 24
channels = [4, 8]
pooling = "grid"
[model.text]
encoder = "bigru"
word_dim = 8
[training]
epochs = 1
families_per_batch = 2
"""

PLAN = Plan(
    train_families=2, validation_queries=4, test_queries=4, gallery=20, image_size=32, views=("shaded",)
)
MODEL = {
    "system": "sac",
    "embedding_dim": 8,
    "image": {"trunk": "small", "size": 24, "channels": [4, 6]},
    "text": {"word_dim": 4, "hidden": 8},
}


def _result(system, seed, recall):
    return {
        "system": system,
        "seed": seed,
        "parameters": 1000,
        "seconds": 60.0,
        "cpu_seconds": 90.0,
        "test": {
            "queries": 10,
            "gallery": 50,
            "recall": {"1": recall, "5": 0.9, "10": 1.0},
            "recall_at_1_by_kind": {"add": recall},
        },
    }


def test_finished_trainings_are_kept(tmp_path, capsys):
    generate(tmp_path / "scenes", PLAN, jobs=1)
    generate(tmp_path / "others", replace(PLAN, seed=1), jobs=1)
    (tmp_path / "config.toml").write_text(CONFIG)
    command = ["ablation", str(tmp_path / "config.toml"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--systems", "text-only", "artemis", "--seeds", "2", "--threads", "1", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert [(r["system"], r["seed"]) for r in first["trainings"]] == [
        ("text-only", 0),
        ("text-only", 1),
        ("artemis", 0),
        ("artemis", 1),
    ]
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.pt")}
    assert len(stamps) == 4
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.pt")}
    assert (tmp_path / "out" / "recall.md").read_text() == table(first["trainings"])

    config = tmp_path / "config.toml"
    for change, words in (
        (("epochs = 1", "epochs = 2"), "training.epochs was 1 and is 2"),
        (("word_dim = 8", "word_dim = 9"), "model.text.word_dim was 8 and is 9"),
        (("channels = [4, 8]", "channels = [4, 9]"), "model.image.channels was [4, 8] and is [4, 9]"),
        (('path = "scenes"', 'path = "x"\ndataset = "css"'), "data.dataset was 'scenes' and is 'css'"),
        (('path = "scenes"', 'path = "scenes"\nview = "flat"'), "data.view was '' and is 'flat'"),
        (
            ('path = "scenes"', 'path = "scenes"\npreparation = "padded-crop"'),
            "data.preparation was '' and is 'padded-crop'",
        ),
        (('path = "scenes"', 'path = "others"'), "others holds other queries or images"),
    ):
        config.write_text(CONFIG.replace(*change))
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "log.jsonl is of another training (" in said and f"{words})" in said
    shutil.copytree(tmp_path / "scenes", tmp_path / "turned")
    for path in (tmp_path / "turned").rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
    config.write_text(CONFIG.replace('path = "scenes"', 'path = "turned"'))
    assert main(command) == 1 and "turned holds other queries or images" in capsys.readouterr().err
    config.write_text(CONFIG.replace('path = "scenes"', 'path = "gone"'))
    assert main(command) == 0, "a table of what is finished asks for no data"
    capsys.readouterr()
    config.write_text(CONFIG)

    log = tmp_path / "out" / "text-only-0" / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:-1], json.dumps(json.loads(lines[-1]) | {"test": None})]))
    assert main(command) == 1
    assert "log.jsonl has nothing measured on a test split" in capsys.readouterr().err
    log.write_text("not json\n")
    assert main(command) == 1
    assert "is damaged" in capsys.readouterr().err


def test_every_row_of_sacs_ablation_is_a_configuration():
    config = TrainingConfig(DataSettings("x"), MODEL, TrainingSettings(1))
    for row in ABLATIONS["sac"].values():
        model = config.changed(row.changes).model
        build_model(with_vocabulary(model, 20))
    said = {name: config.changed(row.changes).digest for name, row in ABLATIONS["sac"].items()}
    assert len(set(said.values())) == len(said)


def test_sacs_rows_are_trained_and_tabulated_apart(tmp_path, capsys):
    generate(tmp_path / "scenes", PLAN, jobs=1)
    (tmp_path / "config.toml").write_text(CONFIG)
    command = ["ablation", str(tmp_path / "config.toml"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    command += ["--of", "sac", "--seeds", "1", "--threads", "1"]
    assert main([*command, "--systems", "sac", "triplet"]) == 0
    text = (tmp_path / "out" / "recall.md").read_text()
    assert text == table(json.loads((tmp_path / "out" / "recall.json").read_text()), "sac")
    assert text.index("| SAC, its triplet loss alone |") < text.index("| SAC |")
    capsys.readouterr()
    assert main([*command, "--systems", "is-only"]) == 2
    assert "--systems 'is-only': not of sac; expected some of fine, coarse," in capsys.readouterr().err


def test_a_data_set_without_a_test_split_is_refused_before_training(tmp_path, capsys):
    generate(tmp_path / "scenes", PLAN, jobs=1)
    names = sorted(path.name for path in (tmp_path / "scenes").rglob("*.png"))[:6]
    pictures = [str(next((tmp_path / "scenes").rglob(name)).relative_to(tmp_path)) for name in names]
    rows = [f"{one},{other},make it red" for one, other in pairwise(pictures)]
    (tmp_path / "triplets.csv").write_text("\n".join(["reference,target,text", *rows]))
    (tmp_path / "config.toml").write_text(
        CONFIG.replace('path = "scenes"', 'path = "triplets.csv"\ndataset = "table"')
    )
    for name in ("ablation", "systems"):
        command = [name, str(tmp_path / "config.toml"), "-o", str(tmp_path / "out"), "--device", "cpu"]
        assert main([*command, "--systems", "text-only"]) == 1
        assert "triplets.csv has no test split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["ablation", "systems"])
def test_two_tables_are_not_made_in_one_folder(tmp_path, capsys, command):
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    with alone_in(tmp_path, TrainingError, "works"):
        assert main([command, str(config), "--output", str(tmp_path)]) == 1
    assert "another process trains for its table there" in capsys.readouterr().err


def test_a_table_has_the_recall_that_its_protocol_counts():
    result = _result("artemis", 0, 0.7)
    test = {"protocol": "fashioniq/val", "queries": 10, "gallery": 50, "recall": {"10": 0.25, "50": 0.5}}
    text = table([{**result, "test": test}])
    assert "10 queries in a gallery of 50 pictures.\n" in text
    assert "| system | R@10 | R@50 | trainings |" in text
    assert "| ARTEMIS | 25.0 | 50.0 | 1 |" in text
    assert "what the text modifies" not in text


def test_several_seeds_give_their_mean_and_deviation():
    text = table([_result("artemis", 0, 0.7), _result("artemis", 1, 0.8), _result("image-only", 0, 0.125)])
    assert "| ARTEMIS | 75.0 ± 7.1 | 90.0 ± 0.0 | 100.0 ± 0.0 | 2 |" in text
    assert "| image only | 12.5 | 90.0 | 100.0 | 1 | 1,000 | 1.0 | 1.5 |" in text
    assert text.index("image only") < text.index("ARTEMIS")
