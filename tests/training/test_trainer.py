"""A whole, tiny training: it learns, repeats itself, survives interruptions, and names what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cir_bench.commands.ablation import table
from cir_eval.datasets.scenes.generation import Plan, generate
from cir_eval.pictures import Contents
from cir_export.commands.train import main
from cir_export.model_file import load_model
from cir_export.training import step, trainer
from cir_export.training.configuration import DataSettings, TrainingConfig, TrainingSettings
from cir_export.training.state import Begun, load_state, save_state
from cir_export.training.trainer import TrainingFiles, train
from cir_infer.errors import DatasetError, TrainingError
from tests.export.test_model_file import files_of_at_most


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "data"
    plan = Plan(
        train_families=8, validation_queries=8, test_queries=8, gallery=40, image_size=32, views=("shaded",)
    )
    generate(root, plan, jobs=1)
    return root


def _config(scenes, system="artemis", **training):
    return TrainingConfig(
        DataSettings(str(scenes)),
        {
            "system": system,
            "embedding_dim": 32,
            "image": {"trunk": "small", "size": 24, "channels": [8, 16], "pooling": "grid"},
            "text": {"encoder": "lstm", "word_dim": 16, "hidden": 32, "dropout": 0.2},
        },
        TrainingSettings(
            **{"epochs": 2, "families_per_batch": 2, "learning_rate": 5e-3, "schedule": "cosine", **training}
        ),
    )


class _Interrupted(Exception):
    pass


def _weights(folder):
    return torch.load(TrainingFiles(folder).model, weights_only=True)["weights"]


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_is_deterministic_and_its_loss_falls(scenes, tmp_path):
    entries = []
    train(_config(scenes, epochs=4), tmp_path / "a", "cpu", report=entries.append)
    train(_config(scenes, epochs=4), tmp_path / "b", "cpu")
    train(_config(scenes, epochs=4, seed=1), tmp_path / "c", "cpu")
    assert _same(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    assert not _same(_weights(tmp_path / "a"), _weights(tmp_path / "c"))
    losses = [e["loss"] for e in entries if e["event"] == "epoch"]
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("stop_at", [3, 4, 6])
def test_an_interrupted_training_continues_to_the_same_bits(scenes, tmp_path, monkeypatch, stop_at):
    """Inside an epoch (4 steps each), at its end, and inside the last one; dropout included."""
    monkeypatch.setattr(trainer, "_STATE_EVERY", 1)
    train(_config(scenes), tmp_path / "whole", "cpu")

    original, calls = step.batch_loss, []

    def interrupted(*args):
        if len(calls) == stop_at:
            raise _Interrupted
        calls.append(1)
        return original(*args)

    monkeypatch.setattr(step, "batch_loss", interrupted)
    with pytest.raises(_Interrupted):
        train(_config(scenes), tmp_path / "parts", "cpu")
    assert TrainingFiles(tmp_path / "parts").state.exists()
    monkeypatch.setattr(step, "batch_loss", original)
    torch.manual_seed(999)  # what a new process starts with does not matter
    train(_config(scenes), tmp_path / "parts", "cpu")

    assert _same(_weights(tmp_path / "whole"), _weights(tmp_path / "parts"))
    logs = [
        [json.loads(line) for line in TrainingFiles(tmp_path / name).log.read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    for whole, parts in zip(*logs, strict=True):
        for entry in (whole, parts):
            entry.pop("seconds", None)
            entry.pop("cpu_seconds", None)
        assert whole == parts
    assert not TrainingFiles(tmp_path / "parts").state.exists()


def test_the_stored_model_describes_itself(scenes, tmp_path):
    end = train(_config(scenes, weights="float16"), tmp_path, "cpu")
    stored = load_model(TrainingFiles(tmp_path).model)
    assert stored.provenance["test"] == end["test"]
    assert stored.provenance["epoch"] == end["best_epoch"]
    assert stored.image["height"] == 24
    assert end["test"]["queries"] == 8
    assert end["test"]["gallery"] == 40
    assert end["bytes"] == TrainingFiles(tmp_path).model.stat().st_size
    half = [t.dtype for t in _weights(tmp_path).values() if t.is_floating_point()]
    assert set(half) == {torch.float16}


@pytest.mark.parametrize("system", ["image-only", "text-only", "late-fusion", "is-only", "em-only"])
def test_every_part_of_the_ablation_trains(scenes, tmp_path, system):
    end = train(_config(scenes, system, epochs=1, precision="bfloat16"), tmp_path, "cpu")
    assert end["system"] == system
    row = table([end]).splitlines()[4]
    assert f"{100 * end['test']['recall']['1']:.1f}" in row


def test_another_configuration_does_not_continue_a_state(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_STATE_EVERY", 1)
    original, calls = step.batch_loss, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise _Interrupted
        return original(*args)

    monkeypatch.setattr(step, "batch_loss", interrupted)
    with pytest.raises(_Interrupted):
        train(_config(scenes), tmp_path, "cpu")
    monkeypatch.setattr(step, "batch_loss", original)
    with pytest.raises(TrainingError, match=r"another configuration.*--restart"):
        train(_config(scenes, learning_rate=1e-3), tmp_path, "cpu")
    state = TrainingFiles(tmp_path).state
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"training\.state was not loaded: .*cut short.*--restart"):
        train(_config(scenes), tmp_path, "cpu")
    train(_config(scenes, epochs=1), tmp_path, "cpu", restart=True)
    assert not state.exists()


def _turned(folder):
    """The same pictures upside down, under the same names."""
    for path in sorted(folder.rglob("*.png")):
        turned = Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        turned.save(path)


def _smaller(folder):
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).resize((28, 28)).save(path)


def _of_other_content(folder):
    """Files of the sizes that they had, with other pixels; of one split alone."""
    for path in sorted((folder / "validation").rglob("*.png")):
        path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize(
    ("change", "said"),
    [(_turned, r"now \d"), (_smaller, r"now \d"), (_of_other_content, "of other content")],
)
def test_other_pictures_of_the_same_names_do_not_continue_a_state(
    scenes, tmp_path, monkeypatch, change, said
):
    """The table says the same of them, but what was learned is of others."""
    data = tmp_path / "data"
    shutil.copytree(scenes, data)
    _stopped(_config(data), tmp_path / "out", monkeypatch)
    change(data)
    with pytest.raises(TrainingError, match=rf"other pictures \(\d+ in files of .* bytes, {said}.*--restart"):
        train(_config(data), tmp_path / "out", "cpu")


def test_a_data_set_that_was_moved_and_copied_continues_a_state(scenes, tmp_path, monkeypatch):
    _stopped(_config(scenes), tmp_path / "out", monkeypatch)
    shutil.copytree(scenes, tmp_path / "moved", copy_function=shutil.copyfile)  # of another time
    train(_config(tmp_path / "moved"), tmp_path / "out", "cpu")
    train(_config(scenes), tmp_path / "whole", "cpu")
    assert _same(_weights(tmp_path / "out"), _weights(tmp_path / "whole"))


def test_a_finished_model_is_not_replaced_without_being_asked(scenes, tmp_path):
    files = TrainingFiles(tmp_path)
    train(_config(scenes, epochs=1), tmp_path, "cpu")
    whole = files.model.read_bytes(), files.log.read_bytes()
    for config in (_config(scenes, epochs=1), _config(scenes, "tirg", epochs=1)):
        with pytest.raises(
            TrainingError, match=r"model\.pt is there, of a training that has ended.*--restart"
        ):
            train(config, tmp_path, "cpu")
    assert (files.model.read_bytes(), files.log.read_bytes()) == whole
    train(_config(scenes, "tirg", epochs=1), tmp_path, "cpu", restart=True)
    assert files.model.read_bytes() != whole[0]


def test_what_cannot_be_trained_is_refused_with_a_remedy(scenes, tmp_path):
    good = _config(scenes)
    with pytest.raises(TrainingError, match="float16 needs a GPU"):
        train(_config(scenes, precision="float16"), tmp_path, "cpu")
    with pytest.raises(TrainingError, match="device 'gpu' cannot be used"):
        train(good, tmp_path, "gpu")
    with pytest.raises(TrainingError, match="fewer than the 9 families"):
        train(_config(scenes, families_per_batch=9), tmp_path, "cpu")
    with pytest.raises(TrainingError, match="views shaded, not 'flat'"):
        train(replace(good, data=DataSettings(str(scenes), view="flat")), tmp_path, "cpu")
    with pytest.raises(TrainingError, match="system 'astemir' is not known"):
        train(_config(scenes, "astemir"), tmp_path, "cpu")
    with pytest.raises(TrainingError, match=r"image\.size"):
        train(replace(good, model={**good.model, "image": {"size": "big"}}), tmp_path, "cpu")
    with pytest.raises(DatasetError, match="cir-bench scenes"):
        train(good.with_data(tmp_path / "nothing"), tmp_path, "cpu")


def test_two_trainings_do_not_write_into_one_folder(scenes, tmp_path):
    """The second would continue the first one's state, and the last to end would replace its model."""
    refused = []

    def begin_another(_):
        with pytest.raises(TrainingError, match="another process trains there; wait until it has ended"):
            train(_config(scenes), tmp_path, "cpu", restart=True)
        refused.append(True)

    train(_config(scenes, epochs=1), tmp_path, "cpu", report=begin_another)
    assert len(refused) == 3 and load_model(tmp_path / "model.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "model.pt"]


def test_a_diverging_training_stops(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "batch_classification_loss", lambda scores, *_: scores.sum() * float("nan"))
    with pytest.raises(TrainingError, match="the loss is nan at step 1; lower"):
        train(_config(scenes), tmp_path, "cpu")


def test_the_command_trains_and_prints_one_json_object(scenes, tmp_path, capsys):
    (tmp_path / "config.toml").write_text(
        '[data]\npath = "nowhere"\n[model]\nsystem = "artemis"\nembedding_dim = 16\n'
        '[model.image]\ntrunk = "small"\nsize = 24\nchannels = [4, 8]\npooling = "grid"\n'
        '[model.text]\nencoder = "bigru"\nword_dim = 8\n[training]\nepochs = 1\n'
    )
    code = main([str(tmp_path / "config.toml"), "--data", str(scenes), "-o", str(tmp_path / "o"), "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["event"] == "end"
    again = [
        str(tmp_path / "config.toml"),
        "--data",
        str(scenes),
        "--output",
        str(tmp_path / "o"),
        "--restart",
    ]
    assert main(again) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {tmp_path / 'o' / 'model.pt'}"
    assert main([str(tmp_path / "config.toml")]) == 1
    assert "generate one: cir-bench scenes" in capsys.readouterr().err
    assert main([str(tmp_path / "config.toml"), "--threads", "0"]) == 2


def _stopped(config, folder, monkeypatch, stop_at=3):
    """A training that was interrupted after so many steps, each of which it has kept."""
    original, calls = step.batch_loss, []

    def interrupted(*args):
        if len(calls) == stop_at:
            raise _Interrupted
        calls.append(1)
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "_STATE_EVERY", 1)
        patched.setattr(step, "batch_loss", interrupted)
        with pytest.raises(_Interrupted):
            train(config, folder, "cpu")
    return TrainingFiles(folder).state


def test_a_state_that_was_damaged_is_not_continued(scenes, tmp_path, monkeypatch):
    state = _stopped(_config(scenes), tmp_path, monkeypatch)
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    with pytest.raises(TrainingError, match=r"training\.state .*damaged.*--restart"):
        train(_config(scenes), tmp_path, "cpu")
    train(_config(scenes), tmp_path, "cpu", restart=True)


def test_a_state_of_other_layers_is_not_continued(scenes, tmp_path, monkeypatch):
    """As another release may have them by the same configuration."""
    state = _stopped(_config(scenes), tmp_path, monkeypatch)
    content = torch.load(state, weights_only=True)
    content["model"] = {f"older.{name}": value for name, value in content["model"].items()}
    torch.save(content, state)
    with pytest.raises(TrainingError, match=r"does not fit the model .*--restart"):
        train(_config(scenes), tmp_path, "cpu")


def test_a_full_disk_leaves_the_log_and_the_state_as_they_were(scenes, tmp_path, monkeypatch):
    state = _stopped(_config(scenes), tmp_path, monkeypatch, stop_at=5)
    log = TrainingFiles(tmp_path).log
    configuration, queries, initial, pictures = torch.load(state, weights_only=True)["begun"]
    kept = load_state(state, Begun(configuration, queries, tuple(initial), Contents(*pictures)))
    before = log.read_bytes()
    with (
        files_of_at_most(200),
        pytest.raises(TrainingError, match=r"training\.state cannot be written: File"),
    ):
        save_state(state, kept)
    with files_of_at_most(200), pytest.raises(TrainingError, match=r"log\.jsonl cannot be written: File"):
        trainer._write_log(log, kept.log)
    assert log.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "training.state"]
    train(_config(scenes), tmp_path, "cpu")
