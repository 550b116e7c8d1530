"""`cir-train --system`, `--initial` and `cir-bench systems`: every system trains from one configuration."""

from __future__ import annotations

import json
import re

import pytest
import torch

from cir_bench.commands import main
from cir_bench.commands.systems import SYSTEMS, table
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_export.commands.train import main as cir_train
from cir_export.model_file import load_model
from cir_export.models import MODELS, build_model
from cir_export.training.systems import max_tokens, model_for_system, with_vocabulary
from cir_infer.errors import UsageError

CONFIG = """
[data]
path = "scenes"
[model]
system = "artemis"
embedding_dim = 16
[model.image]
trunk = "small"
size = 24
channels = [4, 6, 8]
pooling = "grid"
[model.text]
encoder = "bigru"
word_dim = 8
[training]
epochs = 1
families_per_batch = 2
"""
BASE = {
    "system": "artemis",
    "embedding_dim": 16,
    "image": {"trunk": "small", "size": 24, "channels": [4, 6, 8], "pooling": "grid"},
    "text": {"encoder": "bigru", "word_dim": 8},
}
TINY_CLIP = {
    "embed_dim": 16, "image_size": 32, "vision_layers": [1, 1, 1, 1], "vision_width": 4, "vision_heads": 2,
    "patch_size": 0, "context_length": 40, "text_width": 16, "text_heads": 2, "text_layers": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("systems")
    plan = Plan(
        train_families=2, validation_queries=4, test_queries=4, gallery=20, image_size=32, views=("shaded",)
    )
    generate(folder / "scenes", plan, jobs=1)
    (folder / "config.toml").write_text(CONFIG)
    return folder


@pytest.mark.parametrize("system", sorted(name for name, model in MODELS.items() if not model.from_towers))
def test_one_configuration_builds_every_system(system):
    model = build_model(with_vocabulary(model_for_system(BASE, system), 30))
    assert model.system == system
    trunk = getattr(model, "trunk", None) or getattr(getattr(model, "image_encoder", None), "trunk", None)
    assert system.startswith("clip") or trunk.channels == (4, 6, 8)
    assert max_tokens(model_for_system(BASE, system)) in (64, 512)


def test_a_system_that_is_not_known_or_cannot_share():
    with pytest.raises(UsageError, match="'sum' is made of the towers of a folder"):
        model_for_system(BASE, "sum")
    with pytest.raises(UsageError, match="--system 'gpt' is not known"):
        model_for_system(BASE, "gpt")
    with pytest.raises(UsageError, match="no image and text encoder to share"):
        model_for_system({"system": "clip4cir-sum", "clip": TINY_CLIP}, "tirg")


def test_the_table_trains_and_times_systems(folder, capsys):
    command = ["systems", str(folder / "config.toml"), "-o", str(folder / "out"), "--device", "cpu"]
    command += ["--systems", "tirg", "--threads", "1", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)["trainings"]
    assert list(first) == ["tirg"]
    assert first["tirg"]["query_ms"] > 0
    stamp = (folder / "out" / "tirg" / "model.pt").stat().st_mtime_ns
    assert main([*command, "--table-only"]) == 0
    capsys.readouterr()
    assert stamp == (folder / "out" / "tirg" / "model.pt").stat().st_mtime_ns
    assert "| TIRG |" in (folder / "out" / "recall.md").read_text()
    assert main(["systems", str(folder / "config.toml"), "-o", str(folder / "none"), "--table-only"]) == 1
    assert "no finished training" in capsys.readouterr().err


def test_stage_2_starts_from_stage_1_and_leaves_its_clip_alone(folder, capsys):
    clip = "\n".join(f"{key} = {value}" for key, value in TINY_CLIP.items())
    text = CONFIG.split("[model]")[0] + f'[model]\nsystem = "clip4cir-sum"\n[model.clip]\n{clip}\n'
    text += "[training]" + CONFIG.split("[training]")[1] + "frozen_epochs = 1\n"
    (folder / "clip.toml").write_text(text)
    stage_1, stage_2 = folder / "stage1", folder / "stage2"
    assert cir_train([str(folder / "clip.toml"), "-o", str(stage_1), "--device", "cpu"]) == 0
    command = [
        str(folder / "clip.toml"),
        "-o",
        str(stage_2),
        "--device",
        "cpu",
        "--system",
        "clip4cir-combiner",
    ]
    assert cir_train([*command, "--initial", str(stage_1 / "model.pt")]) == 0
    before, after = (load_model(path / "model.pt") for path in (stage_1, stage_2))
    assert after.model.system == "clip4cir-combiner"
    assert after.text["max_tokens"] == 40
    for name, value in before.model.clip.state_dict().items():
        assert torch.equal(value, after.model.clip.state_dict()[name]), name
    capsys.readouterr()
    assert cir_train([str(folder / "config.toml"), "-o", str(folder / "x"), "--initial", "nowhere.pt"]) == 1
    assert "nowhere.pt" in capsys.readouterr().err


def test_the_table_lists_systems_in_order():
    result = {
        "parameters": 1000,
        "query_ms": 2.04,
        "cpu_seconds": 90.0,
        "test": {"queries": 10, "gallery": 50, "recall": {"1": 0.125, "5": 0.9, "10": 1.0}},
    }
    text = table({"artemis": result, "tirg": result})
    assert text.startswith("10 queries over ")
    assert "| TIRG | 12.5 | 90.0 | 100.0 | 1,000 | 2.0 | 1.5 |" in text
    assert text.index("| TIRG |") < text.index("| ARTEMIS |")
    result["test"]["protocol"] = "scenes/flat-to-shaded"
    assert table({"tirg": result}).startswith("Protocol scenes/flat-to-shaded: 10 queries")
    own = {name for name in MODELS if name.startswith("tirg-") and name.endswith("-only")}
    own |= {name for name, model in MODELS.items() if model.from_towers}
    assert set(SYSTEMS) == set(MODELS) - own


def test_a_protocol_of_several_parts_has_a_table_of_them():
    test = {
        "protocol": "emoji/styles",
        "queries": 60,
        "gallery": 1500,
        "recall": {"1": 0.5, "5": 0.75, "10": 1.0},
        "parts": {"noto": {"R@1": 0.75}, "twemoji to noto": {"R@1": 0.25}},
    }
    result = {"test": test, "parameters": 1000, "cpu_seconds": 60.0}
    text = table({"artemis": result, "tirg": result})
    assert (
        "60 queries over held-out compositions, in 2 parts with 750 pictures in the gallery of each" in text
    )
    lines = ["| part | TIRG | ARTEMIS |", "|---|---|---|"]
    lines += ["| noto | 75.0 | 75.0 |", "| twemoji to noto | 25.0 | 25.0 |"]
    assert text.splitlines()[-4:] == lines


@pytest.mark.parametrize(
    ("system", "change", "words"),
    [
        ("show-and-tell", {"text": {"max_words": "many"}}, "max_words: 'many'; expected a whole number"),
        (
            "clip4cir-sum",
            {"clip": {**TINY_CLIP, "context_length": [1]}},
            r"context_length: \[1\]; expected a whole number",
        ),
        ("mrn", {"blocks": 10**9}, "more than 10,000 layers"),
        ("clip4cir-sum", {"clip": {**TINY_CLIP, "text_layers": 2**31 - 1}}, "more than 10,000 layers"),
        ("relationship", {"cells": 2**31 - 1}, "model.cells: 2147483647 do not divide a map of 3 x 3"),
        ("show-and-tell", {"text": {"dropout": 7.0}}, "cannot be built .dropout probability has to be"),
        ("val", {"image": {"mean": [0.5]}}, "mean .* expected three values"),
    ],
)
def test_a_model_that_cannot_be_is_one_clear_error(folder, tmp_path, capsys, system, change, words):
    given = [f"model.{name}={_toml(value)}" for name, value in _flat(change)]
    command = [str(folder / "config.toml"), "--system", system, "-o", str(tmp_path), "--device", "cpu"]
    assert cir_train([*command, *(word for change in given for word in ("--set", change))]) == 1
    assert re.search(words, capsys.readouterr().err)


def _flat(table, prefix=""):
    for name, value in table.items():
        if isinstance(value, dict) and name != "clip":
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize("system", ["cirplant", "maaf"])
def test_sizes_that_other_systems_take_over_are_sizes(system):
    for change in ({"embedding_dim": "wide"}, {"text": {"word_dim": [3]}}):
        if system == "maaf" and "text" in change:
            continue
        with pytest.raises(UsageError, match="expected a whole number"):
            model_for_system(BASE | change, system)
